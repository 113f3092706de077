//! The API over HTTP, on a real broker; nodes are scripted where there are any.

#[cfg(test)]
mod access;
#[cfg(test)]
mod changes;
#[cfg(test)]
mod dispatch;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod node;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod trail;
#[cfg(test)]
mod unrecorded;
