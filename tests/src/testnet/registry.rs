//! Banners and a WHOIS registry.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use super::place::Place;

/// Where they are.
pub const REGISTRY: &str = "10.77.100.43";
/// Who greets like an SSH server.
pub const GREETING_PORT: u16 = 2222;
/// Its greeting.
pub const GREETING: &str = "SSH-2.0-Testnet_1.0";

/// What the registry has.
const DOMAIN: &str = include_str!("../../testnet/whois.txt");

/// Starts to serve, as long as the program runs.
pub(super) fn start(server: &Place) {
    let listen = |port: u16| {
        let bound = server.within(|| TcpListener::bind((REGISTRY, port)));
        bound.unwrap_or_else(|error| panic!("{REGISTRY}, port {port}: {error}"))
    };
    serve(listen(GREETING_PORT), |mut stream| stream.write_all(format!("{GREETING}\r\n").as_bytes()));
    serve(listen(43), |mut stream| {
        let mut line = String::new();
        BufReader::new(&mut stream).read_line(&mut line)?;
        let known = line.trim_end().eq_ignore_ascii_case("probe.test");
        stream.write_all(if known { DOMAIN } else { "No match for domain.\n" }.replace('\n', "\r\n").as_bytes())
    });
}

fn serve(listener: TcpListener, answer: fn(TcpStream) -> std::io::Result<()>) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever hangs up early wants no answer.
            std::thread::spawn(move || drop(answer(stream)));
        }
    });
}
