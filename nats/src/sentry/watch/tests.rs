use super::*;
use crate::sentry::log::What;

struct Scene {
    watch: Watch,
    begun: Instant,
    /// Server, number, name, messages.
    there: Vec<(&'static str, u64, &'static str, u64)>,
}

fn who(name: &str) -> Who {
    let kind = match name {
        "api-1" => Kind::Part(name.to_owned()),
        "svc" => Kind::Service(name.parse().unwrap()),
        _ => Kind::Node(name.parse().unwrap(), "eu".parse().unwrap()),
    };
    Who { key: format!("U{name}"), account: "APP".to_owned(), kind }
}

impl Scene {
    fn new() -> Self {
        Self { watch: Watch::new(Bounds::default()), begun: Instant::now(), there: Vec::new() }
    }

    fn at(&self, s: u64) -> Instant {
        self.begun + Duration::from_secs(s)
    }

    fn comes(&mut self, s: u64, server: &'static str, cid: u64, name: &'static str) -> Vec<Act> {
        self.there.push((server, cid, name, 0));
        let event = Event::Came { server: server.to_owned(), cid, who: who(name), host: "h".to_owned() };
        self.watch.event(event, self.at(s))
    }

    fn goes(&mut self, s: u64, server: &str, cid: u64) {
        self.there.retain(|there| (there.0, there.1) != (server, cid));
        assert!(self.watch.event(Event::Went { server: server.to_owned(), cid }, self.at(s)).is_empty());
    }

    fn publishes(&mut self, cid: u64, messages: u64) {
        self.there.iter_mut().filter(|there| there.1 == cid).for_each(|there| there.3 += messages);
    }

    fn listed(&mut self, s: u64) -> Vec<Act> {
        self.lists(s, |_| None)
    }

    fn listed_by_name(&mut self, s: u64) -> Vec<Act> {
        self.lists(s, |name| Some(who(name)))
    }

    fn lists(&mut self, s: u64, named: fn(&str) -> Option<Who>) -> Vec<Act> {
        let listed = |&(server, cid, name, messages): &(&str, u64, &str, u64)| Listed {
            server: server.to_owned(),
            cid,
            who: named(name),
            host: "h".to_owned(),
            messages,
            bytes: messages,
        };
        let connections = self.there.iter().map(listed).collect();
        let listing = Listing { asked_at: self.at(s), servers: vec!["s1".to_owned(), "s2".to_owned()], connections };
        self.watch.list(&listing, self.at(s))
    }

    fn violates(&mut self, s: u64, cid: u64, name: &str) -> Vec<Act> {
        let line =
            Line { cid, account: "APP".to_owned(), user: format!("U{name}"), host: "h".to_owned(), what: What::Publish("x".to_owned()) };
        self.watch.violation(&line, self.at(s))
    }
}

fn cuts(acts: &[Act]) -> Vec<(String, u64)> {
    let cut = |act: &Act| if let Act::Cut(cut) = act { Some((cut.server.clone(), cut.cid)) } else { None };
    acts.iter().filter_map(cut).collect()
}

#[test]
fn two_that_speak_with_one_key_are_cut_and_their_key_is_revoked() {
    let mut scene = Scene::new();
    scene.comes(0, "s1", 1, "n1");
    scene.comes(10, "s2", 1, "n1");
    assert!(scene.watch.suspects());
    for s in 11..=40 {
        assert!(scene.listed(s).is_empty(), "{s}: what was on its way may arrive");
        scene.publishes(1, 1);
    }
    let acts = scene.listed(41);
    assert_eq!(cuts(&acts), [("s1".to_owned(), 1), ("s2".to_owned(), 1)]);
    assert!(matches!(acts.last(), Some(Act::Revoke(cloned)) if cloned.who.principal() == "node:n1"), "{acts:?}");
    // Until it is revoked, no two of them come in again.
    scene.goes(44, "s1", 1);
    scene.goes(44, "s2", 1);
    assert!(scene.comes(45, "s1", 2, "n1").is_empty());
    assert_eq!(cuts(&scene.comes(45, "s2", 3, "n1")).len(), 2);
}

#[test]
fn one_that_reconnects_is_no_clone() {
    let mut scene = Scene::new();
    scene.comes(0, "s1", 1, "n1");
    scene.publishes(1, 100);
    scene.listed(1);
    // Its wire was cut; the broker will know of the old connection's end in a minute. What was written to it still arrives, slowly.
    scene.comes(10, "s2", 2, "n1");
    for s in 11..70 {
        scene.publishes(2, 1);
        scene.publishes(1, u64::from(s < 39));
        assert!(scene.listed(s).is_empty(), "{s}");
    }
    scene.goes(70, "s1", 1);
    assert!(!scene.watch.suspects() && scene.watch.visited.is_empty());
    assert!(scene.listed(200).is_empty());
}

#[test]
fn one_whose_network_breaks_again_and_again_is_no_clone() {
    let mut scene = Scene::new();
    scene.comes(0, "s1", 0, "n1");
    // Every twelve seconds it comes anew, and the broker takes 75 s to see each old one's end: there are seven at a time.
    for s in 1..3_600 {
        let newest = s / 12;
        if s % 12 == 0 {
            assert!(scene.comes(s, if newest % 2 == 0 { "s1" } else { "s2" }, newest, "n1").is_empty());
        }
        if s >= 87 && (s - 87) % 12 == 0 {
            let ended = (s - 87) / 12;
            scene.goes(s, if ended % 2 == 0 { "s1" } else { "s2" }, ended);
        }
        scene.publishes(newest, 3);
        // The last words of the one before.
        scene.publishes(newest.saturating_sub(1), u64::from(s % 12 < 6));
        assert_eq!(scene.listed(s), Vec::new(), "{s}");
    }
}

#[test]
fn one_that_comes_and_goes_beside_a_living_one_is_a_clone() {
    for (every, stays, cut_at) in [(1, 0, 31..=52), (7, 2, 45..=60), (1_000, 3, 3_000..=3_200)] {
        let mut scene = Scene::new();
        scene.comes(0, "s1", 1, "n1");
        let cut = (1..4_000).find(|s| {
            // It says hello and is gone; the node itself says what a node says, every ten seconds.
            if s % every == 0 {
                assert!(scene.comes(*s, "s2", 1_000 + s, "n1").is_empty());
                scene.publishes(1_000 + s, 1);
            }
            if s % every == stays && *s >= every {
                scene.goes(*s, "s2", 1_000 + s - stays);
            }
            scene.publishes(1, u64::from(s % 10 == 0));
            let acts = scene.listed(*s);
            assert!(acts.is_empty() || cuts(&acts).contains(&("s1".to_owned(), 1)), "{acts:?}");
            matches!(acts.last(), Some(Act::Revoke(cloned)) if cloned.hosts == ["h"])
        });
        assert!(cut.is_some_and(|cut| cut_at.contains(&cut)), "every {every}: {cut:?}");
    }
}

#[test]
fn a_few_visits_and_old_ones_are_none() {
    let mut scene = Scene::new();
    scene.comes(0, "s1", 1, "n1");
    for s in 1..40_000 {
        // Twice in an hour.
        if s % 1_900 == 0 {
            scene.comes(s, "s1", s, "n1");
            scene.goes(s, "s1", s);
        }
        scene.publishes(1, 1);
        assert!(scene.listed(s).is_empty(), "{s}");
    }
}

#[test]
fn of_two_that_were_there_before_both_have_to_speak() {
    let mut scene = Scene::new();
    scene.there.extend([("s1", 1, "n1", 50), ("s2", 2, "n1", 70)]);
    for s in 1..100 {
        scene.publishes(1, 1);
        assert!(scene.listed_by_name(s).is_empty(), "{s}: the other may be dead");
    }
    scene.publishes(2, 1);
    assert_eq!(cuts(&scene.listed_by_name(100)).len(), 2);
}

#[test]
fn a_clone_that_only_listens_is_one_too() {
    let mut scene = Scene::new();
    scene.comes(0, "s1", 1, "n1");
    scene.comes(1, "s1", 2, "n1");
    // The newer one speaks: the older may be dead.
    for s in 2..121 {
        scene.publishes(2, 1);
        assert!(scene.listed(s).is_empty(), "{s}");
    }
    assert_eq!(cuts(&scene.listed(122)).len(), 2);
}

#[test]
fn services_may_have_many_connections() {
    let mut scene = Scene::new();
    for cid in 0..10 {
        assert!(scene.comes(0, "s1", cid, "svc").is_empty());
    }
    assert!(!scene.watch.suspects() && scene.listed(100).is_empty());
}

#[test]
fn a_flood_of_messages_is_cut_and_a_part_of_ours_is_not() {
    let mut scene = Scene::new();
    scene.comes(0, "s1", 1, "n1");
    scene.comes(0, "s1", 2, "api-1");
    scene.listed(1);
    for cid in [1, 2] {
        scene.publishes(cid, 200_000);
    }
    assert_eq!(cuts(&scene.listed(6)), [("s1".to_owned(), 1)]);
    assert!(scene.listed(7).is_empty(), "and once");
}

#[test]
fn a_flood_of_violations_is_cut_and_a_few_are_not() {
    let mut scene = Scene::new();
    scene.comes(0, "s1", 1, "n1");
    for s in 0..300 {
        let acts = scene.violates(s, 1, "n1");
        assert!(matches!(acts.as_slice(), [Act::Report(_)]), "one a second: {acts:?}");
    }
    let acts: Vec<Act> = (0..150).flat_map(|_| scene.violates(400, 1, "n1")).collect();
    assert_eq!(cuts(&acts), [("s1".to_owned(), 1)]);
    // Of somebody with the same number at a server whom the log does not mean.
    assert!(
        scene
            .violates(401, 1, "n2")
            .iter()
            .all(|act| matches!(act, Act::Report(finding) if finding.who.as_ref().is_some_and(|who| who.kind == Kind::Unknown)))
    );
}

#[test]
fn who_is_no_longer_listed_has_gone() {
    let mut scene = Scene::new();
    scene.comes(0, "s1", 1, "n1");
    scene.there.clear();
    scene.listed(1);
    assert_eq!(scene.watch.connections(), 0);
    scene.listed(100);
    assert!(scene.watch.connections.is_empty());
}
