use std::net::IpAddr;

use super::*;

const PLAN: Plan = Plan {
    first: 1,
    max: 30,
    rounds: 3,
    gap: Duration::from_millis(10),
    silent_hops: 5,
    timeout: Duration::from_secs(2),
    one_by_one: false,
    pace: Pace::Hasty,
};

/// A path of which some hops never answer.
struct World {
    silent: &'static [u8],
    target: u8,
    rtt: Duration,
}

/// Follows a path to its end with a clock of its own; how often each hop was asked, and how long all took.
fn follow(plan: Plan, world: &World) -> (Progression, Vec<usize>, Duration) {
    let (mut path, start) = (Progression::new(plan), Instant::now());
    let (mut now, mut tag, mut asked) = (start, 0, vec![0; 256]);
    // What is on its way back: when, and to which probe.
    let mut coming: Vec<(Instant, Place)> = Vec::new();
    loop {
        path.give_up(now);
        path.begin_round(now);
        while let Some((ttl, round)) = first_due(&path, now) {
            asked[usize::from(ttl)] += 1;
            path.sent((ttl, round), tag, now);
            tag += 1;
            if !world.silent.contains(&ttl) {
                coming.push((now + world.rtt * u32::from(ttl.min(world.target)), (ttl, round)));
            }
        }
        coming.sort_unstable();
        let heard = coming.first().map(|(at, _)| *at);
        let Some(wake) = path.wake() else { return (path, asked, now - start) };
        if heard.is_some_and(|at| at <= wake) {
            let (at, place) = coming.remove(0);
            now = at;
            let from: IpAddr = format!("192.0.2.{}", place.0).parse().unwrap();
            let rtt_ms = Some((world.rtt * u32::from(place.0)).as_secs_f64() * 1000.0);
            let probe = TraceProbe { status: ProbeStatus::Answered, from: Some(from), rtt_ms, ..TraceProbe::default() };
            if path.under_way.iter().any(|(_, under_way)| *under_way == place) {
                path.ended(place, probe, place.0 >= world.target);
            }
        } else {
            now = wake;
        }
    }
}

fn first_due(path: &Progression, now: Instant) -> Option<Place> {
    path.due(now).next()
}

/// Of five.
fn together(path: &Progression, now: Instant) -> usize {
    path.together(&path.due(now).take(5).collect::<Vec<_>>())
}

fn answered(path: &Progression, ttl: u8) -> usize {
    path.ended_of(ttl).filter(|(_, probe)| probe.status == ProbeStatus::Answered).count()
}

#[test]
fn all_hops_are_asked_at_once_and_few_packets_go_past_the_target() {
    let (path, asked, took) = follow(PLAN, &World { silent: &[], target: 6, rtt: Duration::from_millis(4) });
    assert_eq!((path.last(), path.end()), (Some(6), 6));
    assert!((1..=6).all(|ttl| path.is_settled(ttl) && answered(&path, ttl) == 3), "{path:?}");
    assert!(asked[7..].iter().sum::<usize>() <= 5, "{asked:?}");
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[test]
fn a_silent_hop_holds_nobody_up_for_long() {
    let (path, _, took) = follow(PLAN, &World { silent: &[3], target: 6, rtt: Duration::from_millis(4) });
    assert_eq!((answered(&path, 3), path.is_settled(3), path.last()), (0, true, Some(6)));
    assert!(took < Duration::from_millis(250), "the timeout is two seconds: {took:?}");
}

#[test]
fn a_path_that_falls_silent_is_followed_only_so_far() {
    let (path, asked, took) = follow(PLAN, &World { silent: &[3, 4, 5, 6, 7, 8, 9], target: 30, rtt: Duration::from_millis(4) });
    assert_eq!((path.last(), path.farthest(), path.end()), (None, Some(2), 7));
    assert_eq!(asked[8..].iter().sum::<usize>(), 0, "{asked:?}");
    assert!(took < PLAN.timeout * 3, "{took:?}");
}

#[test]
fn a_target_that_no_packet_reaches_ends_with_the_last_hop() {
    let plan = Plan { max: 4, ..PLAN };
    let (path, asked, _) = follow(plan, &World { silent: &[], target: 9, rtt: Duration::from_millis(4) });
    assert_eq!((path.last(), path.end(), answered(&path, 4)), (None, 4, 3));
    assert_eq!(asked[5..].iter().sum::<usize>(), 0);
}

#[test]
fn a_steady_path_is_asked_once_a_round_and_waits_to_the_end() {
    let plan = Plan { pace: Pace::Steady, gap: Duration::from_millis(500), rounds: 4, ..PLAN };
    let (path, asked, took) = follow(plan, &World { silent: &[2], target: 3, rtt: Duration::from_millis(4) });
    assert_eq!((&asked[1..4], path.rounds()), ([4, 4, 4].as_slice(), 4));
    assert!((1..=3).all(|ttl| path.is_settled(ttl)));
    let least = plan.gap * 3 + plan.timeout;
    assert!((least..least + Duration::from_millis(100)).contains(&took), "{took:?}");
}

#[test]
fn what_cannot_be_told_apart_is_sent_again() {
    let mut path = Progression::new(PLAN);
    let now = Instant::now();
    for tag in 0..3 {
        let place = first_due(&path, now).unwrap();
        path.sent(place, tag, now);
    }
    let mut again = path.send_again();
    again.sort_unstable();
    assert_eq!((again, first_due(&path, now), path.place(0)), (vec![0, 1, 2], Some((1, 0)), None));
}

#[test]
fn a_steady_path_keeps_its_rounds_where_many_are_silent() {
    let plan = Plan { pace: Pace::Steady, gap: Duration::from_millis(200), rounds: 20, ..PLAN };
    let (path, asked, took) = follow(plan, &World { silent: &[2, 3, 4, 5, 6], target: 7, rtt: Duration::from_millis(4) });
    assert_eq!((path.last(), &asked[6..8]), (None, [20, 0].as_slice()));
    // The first round is waited for, because nobody knows how far the path goes.
    assert!(took <= plan.gap * 19 + plan.timeout * 2 + Duration::from_millis(100), "{took:?}");
}

#[test]
fn those_leave_together_that_are_sent_whatever_is_heard_of_the_others() {
    let (mut path, now) = (Progression::new(PLAN), Instant::now());
    assert_eq!(together(&path, now), 5);
    for (ttl, tag) in (1..=5).zip(0..) {
        path.sent((ttl, 0), tag, now);
    }
    path.ended((5, 0), TraceProbe { status: ProbeStatus::Answered, ..TraceProbe::default() }, false);
    assert_eq!((first_due(&path, now), together(&path, now)), (Some((6, 0)), 1), "it may be the last");
    for (ttl, tag) in (6..=10).zip(5..) {
        path.sent((ttl, 0), tag, now);
    }
    let later = now + PLAN.gap;
    assert!(path.begin_round(later));
    assert_eq!((path.due(later).take(6).collect::<Vec<_>>(), together(&path, later)), ((1..=5).map(|ttl| (ttl, 1)).collect(), 5));
}
