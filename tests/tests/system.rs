//! The system, as its users run it: a real nats-server, the real programs as separate processes, real sockets.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on must say so and stop")]

mod system {
    mod access;
    mod agent;
    mod audit;
    mod bad_input;
    mod batch;
    mod beyond_limits;
    mod ca;
    mod callbacks;
    mod certificates;
    mod cluster;
    mod copy;
    mod direct;
    mod doctor;
    mod door;
    mod enroll;
    mod examples;
    mod failover;
    mod hostile;
    mod idempotency;
    mod lifecycle;
    mod limits;
    mod live;
    mod places;
    mod queued;
    mod register;
    mod replicas;
    mod schedules;
    mod secrets;
    mod sentry;
    mod spool;
    mod state;
    mod takeover;
    mod tidy;
    mod tools;
    mod traces;
    mod trail;
    mod up;
    mod up_refusals;
    mod ways_in;
    mod wss;
}
