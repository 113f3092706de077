//! The system, as its users run it: a real nats-server, the real programs as separate processes, real sockets.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on must say so and stop")]

mod system {
    mod access;
    mod agent;
    mod audit;
    mod bad_input;
    mod batch;
    mod callbacks;
    mod certificates;
    mod direct;
    mod door;
    mod enroll;
    mod examples;
    mod failover;
    mod idempotency;
    mod lifecycle;
    mod limits;
    mod live;
    mod places;
    mod queued;
    mod register;
    mod replicas;
    mod schedules;
    mod sentry;
    mod state;
    mod takeover;
    mod tidy;
    mod tools;
    mod traces;
    mod up;
    mod up_refusals;
    mod wss;
}
