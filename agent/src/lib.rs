//! The node program: one outbound connection, runs of diagnostics, the node owner's policy.
//!
//! # Layout
//! - [`config`]: what the operator may set. [`agent`]: start, live, drain, stop.
//! - [`enroll`]: how the machine becomes a node: its key and its credentials.
//! - `worker`: a message becomes a run, a run becomes an outcome. `runs`: what is running. `slots`: how much may run.
//! - `groups`: which queue groups the node is in. `presence`: hello, beat, bye. `health`: the same for the machine it is on. `here`: whether an agent runs on it. `trail`: audit records, in memory and on disk, until they are acknowledged.
//! - `outbox`: answers, kept over a reconnect. `inbox`: acknowledgements. `clock`: the control plane's time.
//! - `executors`: one file a tool. [`policy`]: whom the owner lets it touch. `resolve`: names to addresses. `capability`: what it can run.
//! - `way`: straight to the broker, or through a proxy. [`doctor`]: what of all this works, and what does not.
//! - `net`: the operating system, thinly wrapped.

pub mod agent;
mod capability;
mod clock;
pub mod config;
pub mod doctor;
pub mod enroll;
mod executors;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod groups;
mod health;
mod here;
mod inbox;
mod limits;
mod net;
mod outbox;
pub mod policy;
mod presence;
pub mod program;
mod resolve;
mod runs;
mod slots;
#[cfg(test)]
mod testing;
mod trail;
#[doc(hidden)]
pub mod trial;
pub mod way;
mod worker;
