//! Queries to a name server, each from a socket of its own, beside dnsperf.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use super::asker::Job;
use super::yard::{self, Held, PEER};
use super::{Site, executors, median, micros_each, on_one_core, print_costs, timed};

/// How many queries are under way at once.
const UNDER_WAY: usize = 100;
/// The name that is asked for.
const NAME: &str = "www.probe.test";

pub(super) fn measure(site: &mut Site) -> anyhow::Result<()> {
    let (rounds, round) = site.scale.of((5, Duration::from_secs(4)), (1, Duration::from_secs(1)));
    let _named = serve(site)?;
    let questions = site.file("questions", &format!("{NAME} A\n"));
    let job = Job { tool: "dns", target: NAME.to_owned(), parameters: json!({"resolver": PEER}) };
    let options = format!("-s {PEER} -d {questions} -c 1 -T 1 -q {UNDER_WAY} -l {}", round.as_secs());
    let (mut ours, mut alone, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (said, _, spent) = timed(on_one_core("dnsperf").args(options.split(' ')))?;
        let completed = said.lines().find_map(|line| line.trim().strip_prefix("Queries completed:")).context(said.clone())?;
        let completed: usize = completed.split_whitespace().next().context("no count")?.parse()?;
        theirs.push(micros_each(spent, completed));
        let before = site.spent()?;
        let asked = site.fabric.block_on(site.asker.keep(|_| job.clone(), UNDER_WAY, round, executors::is_right))?;
        ours.push(micros_each(site.spent()?.saturating_sub(before), asked));
        alone.push(executors::cost(&job, UNDER_WAY, round)?);
    }
    println!("dns: on one core, {UNDER_WAY} queries under way, each of ours from a socket of its own");
    print_costs(median(ours), median(alone), ("dnsperf", median(theirs)));
    Ok(())
}

/// A name server of the peer's.
fn serve(site: &Site) -> anyhow::Result<Held> {
    let zone = site.file("zone", &format!("$TTL 60\n@ SOA ns root 1 60 60 60 60\n@ NS ns\nns A {PEER}\nwww A 192.0.2.1\n"));
    let folder = std::path::Path::new(&zone).parent().context("a folder")?.display();
    let settings = format!(
        "options {{ directory \"{folder}\"; listen-on {{ {PEER}; }}; listen-on-v6 {{ none; }}; recursion no; pid-file none; session-keyfile none; }};
         controls {{ }};
         zone \"probe.test\" {{ type primary; file \"{zone}\"; }};"
    );
    let mut command = site.peer("named");
    command.args(["-f", "-n", "1", "-c", &site.file("named.conf", &settings)]);
    let named = Held::start(command)?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    // The root's name servers: whatever it says to that, it is there.
    let query = [0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    yard::wait_until("named answers (apt-get install bind9)", || {
        let mut answer = [0; 512];
        socket.send_to(&query, (PEER, 53)).is_ok() && socket.recv(&mut answer).is_ok()
    })?;
    Ok(named)
}
