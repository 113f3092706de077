//! What `up` and the commands beside it refuse: bad settings, damaged data, wrong usage; each with its cause and its cure.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use probeops_tests::up::{Home, documents, is_root};

#[test]
fn what_cannot_be_started_is_one_line_with_cause_and_cure() {
    let home = Home::new();
    home.file("file", "");
    home.file("unknown.toml", "data = \"d\"\n\nhtpp = \"127.0.0.1:0\"\n");
    home.file("broken.toml", "data = \"d\"\nhttp: 1\n");
    home.file("type.toml", "http = 8080\n");
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, port) = (busy.local_addr().unwrap().to_string(), busy.local_addr().unwrap().port());
    let taken = format!("port {port} for ");
    let table: [(&[&str], i32, &[&str]); 15] = [
        (&["--http", &address], 1, &[&taken, "the API", "already in use; stop the program that has it, or choose another with --http"]),
        (&["--broker", &address], 1, &[&taken, "the broker", "already in use; stop the program that has it"]),
        (&["--data", "file/data"], 1, &["cannot make the folder ", "/file/data; name a data folder that this user may write to"]),
        (&["--data", "file"], 1, &["cannot make the folder "]),
        (&["--config", "unknown.toml"], 2, &["unknown.toml line 3: `htpp`: unknown key `htpp`; did you mean `http`?"]),
        (&["--config", "broken.toml"], 2, &["broken.toml line 2: "]),
        (&["--config", "type.toml"], 2, &["type.toml line 1: `http`: "]),
        (&["--config", "none.toml"], 2, &["there is no settings file none.toml"]),
        (&["--http", "8080"], 2, &["http: `8080` is not an IP address and a port, such as 127.0.0.1:8080"]),
        (&["--http", "0.0.0.0:0"], 2, &["http: 0.0.0.0:0 can be reached by others, and `up` serves clear text"]),
        (&["--broker", "localhost"], 2, &["broker: `localhost` is not an IP address and a port"]),
        (&["--name", "a b"], 1, &["`a b` cannot be in the broker's certificate; give a host name such as broker.example"]),
        (&["--credential-lifetime", "31d"], 2, &["credential_lifetime: credentials last from 1s to 30d"]),
        (&["--credential-lifetime", "soon"], 2, &["credential_lifetime: must be a number and its unit, such as 90s"]),
        (&["--log-format", "xml"], 2, &["log_format: must be text or json, not `xml`"]),
    ];
    for (arguments, code, words) in table {
        let mut all = vec!["up"];
        for default in [["--data", "data"], ["--http", "127.0.0.1:0"]] {
            all.extend(default.iter().filter(|_| !arguments.contains(&default[0])));
        }
        all.extend(arguments);
        let line = home.run(&all).bad(code);
        for words in words {
            assert!(line.contains(words), "{arguments:?}: {line}");
        }
    }

    // A folder that exists and is somebody else's.
    std::fs::set_permissions(home.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    let foreign = home.folder_of_nobody("foreign");
    std::fs::create_dir(home.path("locked")).unwrap();
    std::fs::set_permissions(home.path("locked"), std::fs::Permissions::from_mode(0o500)).unwrap();
    let unwritable = if is_root() { "locked" } else { "/" };
    let mut command = home.probeops(&["up", "--once", "--data", unwritable]);
    command.current_dir(&foreign);
    let line = home.finish(home.as_nobody(&command)).bad(1);
    assert!(line.contains("cannot make the folder ") && line.contains("Permission denied"), "{line}");

    // A nats-server that is none: what was tried, and what to do.
    let mut command = home.probeops(&["up", "--once", "--data", "data"]);
    command.env("NATS_SERVER", "/bin/true");
    let said = home.finish(command);
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""));
    assert!(said.err.contains("2.14.3 or later is needed") && said.err.contains("NATS_SERVER=/path/to/nats-server"), "{}", said.err);
}

/// Cuts a file in the middle.
fn cut(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let bytes = file.metadata().unwrap().len();
    assert!(bytes > 1, "{} has nothing to lose", path.display());
    file.set_len(bytes / 2).unwrap();
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

#[test]
fn half_written_data_is_mended_or_named_with_its_cure() {
    let home = Home::new();
    let once = ["up", "--once", "--data", "data"];
    home.run(&once).good();
    let mut secrets = Vec::new();
    for folder in ["keys", "jwt", "creds", "nodes"] {
        files_below(&home.path(&format!("data/{folder}")), &mut secrets);
    }
    // Tokens to enrol with are used up by now, of a spool what was cut is left out, and what was signed for a key is asked for when that key is.
    let signed = home.path("data/keys/signed");
    secrets.retain(|path| {
        path.file_name().is_some_and(|name| !["lock", "token", "audit.lock", "audit.spool"].iter().any(|other| name == *other))
            && !path.starts_with(&signed)
    });
    secrets.push(home.path("data/tls/ca.pem"));
    assert_eq!(secrets.len(), 21 + 9 + 6 + 2 * 4 + 1, "{secrets:?}");
    for path in secrets {
        let whole = std::fs::read(&path).unwrap();
        cut(&path);
        let said = home.run(&once);
        std::fs::write(&path, whole).unwrap();
        // What the API tells those who have a node's key is had anew.
        if ["broker-ca.pem", "node.creds"].iter().any(|name| path.ends_with(name)) && said.code == Some(0) {
            continue;
        }
        let line = said.bad(1);
        assert!(line.contains(&path.display().to_string()), "{line}");
        let cures = [
            "; restore it from a backup, or remove the ",
            "; remove it and start again, which writes a new one",
            " begins anew, with a token",
        ];
        assert!(cures.iter().any(|cure| line.contains(cure)), "{line}");
    }
    // What can be made anew is: all of it at once.
    let mut made = Vec::new();
    files_below(&home.path("data/broker/resolver"), &mut made);
    made.retain(|path| path.extension().is_some_and(|extension| extension == "jwt"));
    assert_eq!(made.len(), 8, "{made:?}");
    let names = [
        "admin.key",
        "demo-policy.toml",
        "lock",
        "ports.json",
        "servers",
        "server-tls/server.key",
        "server-tls/server.pem",
        "broker/server.conf",
    ];
    made.extend(names.map(|name| home.path("data").join(name)));
    files_below(&home.path("data/broker/jetstream"), &mut made);
    made.retain(|path| path.metadata().unwrap().len() > 1);
    for path in &made {
        cut(path);
    }
    let said = home.run(&once);
    assert!(said.err.contains("admin.key held no key that is accepted; it is written anew"), "{}", said.err);
    assert_eq!(documents(&said.good()).len(), 2);
}

#[test]
fn settings_come_from_flags_then_environment_then_file_then_defaults() {
    let home = Home::new();
    home.file("up.toml", "http = \"127.0.0.1:2001\"\nbroker = \"127.0.0.1:3001\"\nnames = [\"file.example\"]\n");
    let printed = |environment: &[(&str, &str)], flags: &[&str]| -> toml::Table {
        let mut command = home.probeops(&["up", "--print-config"]);
        command.args(flags).envs(environment.iter().copied());
        toml::from_str(&home.finish(command).good()).unwrap()
    };
    let with_file = |environment: &[(&str, &str)], flags: &[&str]| printed(environment, &[&["--config", "up.toml"], flags].concat());
    let http = |table: &toml::Table| table["http"].as_str().unwrap().to_owned();
    let defaults = printed(&[], &[]);
    assert_eq!((http(&defaults).as_str(), defaults["data"].as_str()), ("127.0.0.1:8080", Some(".probeops")));
    assert_eq!(defaults["credential_lifetime"].as_str(), Some("30d"));
    assert_eq!(http(&with_file(&[], &[])), "127.0.0.1:2001");
    let environment = [("PROBEOPS_HTTP", "127.0.0.1:2002"), ("PROBEOPS_BROKER", "127.0.0.1:3002")];
    let over_file = with_file(&environment, &[]);
    assert_eq!((http(&over_file).as_str(), over_file["broker"].as_str()), ("127.0.0.1:2002", Some("127.0.0.1:3002")));
    let over_all = with_file(&environment, &["--http", "127.0.0.1:2003"]);
    assert_eq!((http(&over_all).as_str(), over_all["broker"].as_str()), ("127.0.0.1:2003", Some("127.0.0.1:3002")));
    assert_eq!(over_all["names"].as_array().unwrap()[0].as_str(), Some("file.example"), "what is not said elsewhere is the file's");
    assert_eq!(http(&printed(&[("PROBEOPS_CONFIG", "up.toml")], &[])), "127.0.0.1:2001");
    let wrong = home.run(&["up", "--print-config", "--http", "nowhere"]).bad(2);
    assert!(wrong.starts_with("http: `nowhere`"), "{wrong}");

    // No secret is printed, by whichever program.
    home.file("a.creds", "");
    for program in ["api", "agent"] {
        let address = "tls://me:open-sesame@broker.example:4222";
        let said = home.run(&[program, "--print-config", "--servers", address, "--creds", "a.creds"]).good();
        assert!(said.contains("tls://(redacted)@broker.example:4222") && !said.contains("open-sesame"), "{said}");
    }
    assert!(!home.path(".probeops").exists(), "printing starts nothing");
}

#[test]
fn help_teaches_and_wrong_usage_is_told_what_is_right() {
    let home = Home::new();
    let helps: [(&[&str], &[&str]); 4] = [
        (&[], &["Usage: probeops <COMMAND>", "  up ", "  nodes ", "  services ", "  keys ", "Send ICMP", "Exit codes:", "probeops up "]),
        (
            &["up"],
            &[
                "Usage: probeops up",
                "--once",
                "--data <DIR>",
                "--http <ADDRESS>",
                "--allow-ping",
                "--config",
                "--print-config",
                "PROBEOPS_HTTP",
            ],
        ),
        (
            &["ping"],
            &["Usage: probeops ping", "--from <SELECTOR>", "--count <NUMBER>", "1 to 100; default: 4", "PROBEOPS_URL", "PROBEOPS_TOKEN"],
        ),
        (
            &["nodes", "add"],
            &["Usage: probeops nodes add", "--region <REGION>", "What it may run: echo,ping,", "--renew", "probeops nodes add fra-1"],
        ),
    ];
    for (command, words) in helps {
        let help = home.run(&[command, &["--help"]].concat()).good();
        for words in words {
            assert!(help.contains(words), "`{words}` is not in\n{help}");
        }
        assert!(!help.contains("Which API to ask"), "a summary of something else:\n{help}");
    }
    let wrong: [(&[&str], &str); 8] = [
        (&["pong"], "a similar subcommand exists: 'ping'"),
        (&["up", "--onec"], "a similar argument exists: '--once'"),
        (&["ping", "127.0.0.1"], "--from <SELECTOR>"),
        (&["ping", "127.0.0.1", "--from", "eu", "--count", "0"], "must be a whole number from 1 to 100"),
        (&["nodes", "add", "fra_1", "--region", "eu", "--tools", "ping"], "a node id must be 1 to 63 of a-z, 0-9 and `-`"),
        (
            &["nodes", "add", "fra-1", "--region", "eu", "--tools", "pong"],
            "unknown tool `pong`; did you mean `ping`? the tools are echo, ping, traceroute, mtr, dns, tcp, tls, http, pmtu, whois",
        ),
        (&["keys", "add", "x", "--scopes", "jobs"], "unknown scope `jobs`; did you mean `jobs:read`?"),
        (&["services", "add", "api-1", "--regions", "eu", "--tools", "ping"], "names that begin with api- are those of the API"),
    ];
    for (arguments, words) in wrong {
        let said = home.run(arguments);
        assert_eq!((said.code, said.out.as_str()), (Some(2), ""), "{arguments:?}: {}", said.err);
        assert!(said.err.contains(words), "{arguments:?}: {}", said.err);
    }
    // Commands that need a running `up`, where there is none.
    for arguments in [&["nodes", "list"][..], &["services", "list"], &["keys", "list"]] {
        let line = home.run(arguments).bad(1);
        assert!(line.contains("there are no keys in the data folder ") && line.contains("(`probeops up`)"), "{line}");
    }
    let line = home.run(&["ping", "127.0.0.1", "--from", "demo-eu"]).bad(2);
    assert!(line.contains("start a local one with `probeops up`"), "{line}");
}
