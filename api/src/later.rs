//! What is done when nobody waits for it any more: jobs that wait for a node, and what schedules make. The broker keeps them, in stream LATER; any
//! replica goes on with what another has begun. Before anything runs, [`rights`] says what its owner may now.

pub(crate) mod firing;
pub(crate) mod rights;
pub(crate) mod schedules;
