//! From a protocol that begins in clear to the moment when TLS may begin.

use std::time::Duration;

use probeops_shared::tools::tls::StartTls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::Connection;

/// The most that a server may say before it lets TLS begin.
const DIALOGUE_BYTES_MAX: usize = 16 * 1024;
/// Who we say we are: SMTP wants a name (RFC 5321, 4.1.1.1), and none that could be somebody's (RFC 6761, 6.4).
const OUR_NAME: &str = "probeops.invalid";
/// `SSLRequest` (PostgreSQL, "Message Formats").
const POSTGRES_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// The capability of MySQL servers to speak TLS.
const MYSQL_SSL: u32 = 0x0800;
/// What we say of ourselves to MySQL: protocol 4.1, TLS, secure connection, long passwords.
const MYSQL_CAPABILITIES: u32 = 0x0000_8a01;

/// Asks for TLS; in words why there is none. After `Ok` the next byte is the handshake's.
pub(crate) async fn start(stream: &mut impl Connection, protocol: StartTls, patience: Duration) -> Result<(), String> {
    let mut dialogue = Dialogue { stream, heard: Vec::new(), total: 0 };
    let spoken = async {
        match protocol {
            StartTls::Smtp => smtp(&mut dialogue).await,
            StartTls::Imap => imap(&mut dialogue).await,
            StartTls::Pop3 => pop3(&mut dialogue).await,
            StartTls::Ftp => ftp(&mut dialogue).await,
            StartTls::Postgres => postgres(&mut dialogue).await,
            StartTls::Mysql => mysql(&mut dialogue).await,
        }
    };
    let said = timeout(patience, spoken).await;
    said.map_err(|_| format!("the server did not let TLS begin within {} ms", patience.as_millis()))??;
    // Whatever comes between the permission and the handshake was not sent by whom the handshake will prove (RFC 3207, 6).
    if dialogue.heard.is_empty() { Ok(()) } else { Err("the server goes on in clear after it let TLS begin".to_owned()) }
}

/// A conversation in clear.
struct Dialogue<'a, S> {
    stream: &'a mut S,
    /// What was received and not yet read.
    heard: Vec<u8>,
    total: usize,
}

impl<S: Connection> Dialogue<'_, S> {
    async fn say(&mut self, words: &[u8]) -> Result<(), String> {
        self.stream.write_all(words).await.map_err(|error| crate::net::words(&error))
    }

    async fn hear_more(&mut self) -> Result<(), String> {
        let mut buffer = [0; 2048];
        let length = self.stream.read(&mut buffer).await.map_err(|error| crate::net::words(&error))?;
        self.total += length;
        match buffer.get(..length) {
            Some(heard) if length > 0 && self.total <= DIALOGUE_BYTES_MAX => {
                self.heard.extend(heard);
                Ok(())
            }
            _ if length == 0 => Err("the server ended the connection before TLS began".to_owned()),
            _ => Err("the server speaks on and on".to_owned()),
        }
    }

    /// The next line without its end.
    async fn line(&mut self) -> Result<String, String> {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                return Ok(line.trim_ascii_end().escape_ascii().to_string());
            }
            self.hear_more().await?;
        }
    }

    async fn bytes(&mut self, count: usize) -> Result<Vec<u8>, String> {
        while self.heard.len() < count {
            self.hear_more().await?;
        }
        Ok(self.heard.drain(..count).collect())
    }

    /// A reply of SMTP or FTP (RFC 5321, 4.2.1): all its lines, if it begins with this code.
    async fn reply(&mut self, code: &str, to: &str) -> Result<Vec<String>, String> {
        let mut lines = Vec::new();
        loop {
            let line = self.line().await?;
            // In FTP a line between the first and the last need not begin with the code (RFC 959, 4.2).
            let is_last =
                line.get(3..4).is_none_or(|mark| mark == " ") && line.get(..3).is_some_and(|code| code.bytes().all(|b| b.is_ascii_digit()));
            lines.push(line);
            if is_last {
                break;
            }
        }
        match lines.last() {
            Some(last) if !last.starts_with(code) => Err(format!("the server answered {to} with `{last}`")),
            Some(_) | None => Ok(lines),
        }
    }

    /// A line that must begin like this.
    async fn begins(&mut self, start: &str, to: &str) -> Result<(), String> {
        let line = self.line().await?;
        if line.starts_with(start) { Ok(()) } else { Err(format!("the server answered {to} with `{line}`")) }
    }
}

async fn smtp(dialogue: &mut Dialogue<'_, impl Connection>) -> Result<(), String> {
    dialogue.reply("220", "the connection").await?;
    dialogue.say(format!("EHLO {OUR_NAME}\r\n").as_bytes()).await?;
    let offers = dialogue.reply("250", "EHLO").await?;
    if !offers.iter().any(|offer| offer.get(4..).is_some_and(|word| word.trim().eq_ignore_ascii_case("STARTTLS"))) {
        return Err("the server does not offer STARTTLS".to_owned());
    }
    dialogue.say(b"STARTTLS\r\n").await?;
    dialogue.reply("220", "STARTTLS").await.map(drop)
}

async fn imap(dialogue: &mut Dialogue<'_, impl Connection>) -> Result<(), String> {
    dialogue.begins("* OK", "the connection").await?;
    dialogue.say(b"a STARTTLS\r\n").await?;
    loop {
        let line = dialogue.line().await?;
        match line.strip_prefix("a ") {
            Some(answer) if answer.starts_with("OK") => return Ok(()),
            Some(answer) => return Err(format!("the server answered STARTTLS with `{answer}`")),
            None => {}
        }
    }
}

async fn pop3(dialogue: &mut Dialogue<'_, impl Connection>) -> Result<(), String> {
    dialogue.begins("+OK", "the connection").await?;
    dialogue.say(b"STLS\r\n").await?;
    dialogue.begins("+OK", "STLS").await
}

async fn ftp(dialogue: &mut Dialogue<'_, impl Connection>) -> Result<(), String> {
    dialogue.reply("220", "the connection").await?;
    dialogue.say(b"AUTH TLS\r\n").await?;
    dialogue.reply("234", "AUTH TLS").await.map(drop)
}

async fn postgres(dialogue: &mut Dialogue<'_, impl Connection>) -> Result<(), String> {
    dialogue.say(&POSTGRES_REQUEST).await?;
    match dialogue.bytes(1).await?.as_slice() {
        b"S" => Ok(()),
        b"N" => Err("the server does not speak TLS (it answered SSLRequest with N)".to_owned()),
        other => Err(format!("the server answered SSLRequest with `{}`", other.escape_ascii())),
    }
}

async fn mysql(dialogue: &mut Dialogue<'_, impl Connection>) -> Result<(), String> {
    let head = dialogue.bytes(4).await?;
    let [low, middle, high, sequence] = *head.as_slice() else { return Err("the server's greeting is too short".to_owned()) };
    let length = u32::from_le_bytes([low, middle, high, 0]) as usize;
    if length > DIALOGUE_BYTES_MAX {
        return Err("this is no greeting of a MySQL server".to_owned());
    }
    let greeting = dialogue.bytes(length).await?;
    match mysql_capabilities(&greeting) {
        Ok(capabilities) if capabilities & MYSQL_SSL == 0 => Err("the server does not offer TLS (CLIENT_SSL)".to_owned()),
        Ok(_) => {
            let rest = [&MYSQL_CAPABILITIES.to_le_bytes()[..], &(1_u32 << 24).to_le_bytes(), &[33], &[0; 23]].concat();
            dialogue.say(&[&[32, 0, 0, sequence.wrapping_add(1)], rest.as_slice()].concat()).await
        }
        Err(detail) => Err(detail),
    }
}

/// What a MySQL server can, of its greeting (protocol version 10).
fn mysql_capabilities(greeting: &[u8]) -> Result<u32, String> {
    let cut = || "this is no greeting of a MySQL server".to_owned();
    match greeting.split_first() {
        // An error instead: its number, then words.
        Some((0xff, error)) => return Err(format!("the server answered with `{}`", error.get(2..).unwrap_or_default().escape_ascii())),
        Some((10, _)) => {}
        Some(_) | None => return Err(cut()),
    }
    let version_ends = greeting.iter().position(|byte| *byte == 0).ok_or_else(cut)?;
    // After the version: a thread's number, eight bytes of a nonce, and a zero.
    let capabilities = greeting.get(version_ends + 14..version_ends + 16).ok_or_else(cut)?;
    Ok(capabilities.iter().rev().fold(0, |number, byte| (number << 8) | u32::from(*byte)))
}

#[cfg(test)]
mod tests;
