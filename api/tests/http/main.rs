//! The API over HTTP, on a real broker, without nodes.

#[cfg(test)]
mod access;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod trail;
