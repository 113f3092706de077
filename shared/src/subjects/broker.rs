//! Subjects that the broker itself defines: its JSON API for streams, buckets, and its system account.

use std::fmt::Display;

/// The word all audit subjects of all writers begin with: what account AUDIT offers and stream AUDIT keeps.
pub const AUDIT_ALL: &str = "audit.v1.>";
/// Account claims are pushed here; every server answers.
pub const CLAIMS_UPDATE: &str = "$SYS.REQ.CLAIMS.UPDATE";
/// Where readers of streams answer the broker's flow control.
pub const FLOW_CONTROL: &str = "$JS.FC.>";
/// Where the audit trail comes that a server of another operator copies.
pub const MIRRORED: &str = "mirror.audit";
/// Every server answers.
pub const SERVER_PING: &str = "$SYS.REQ.SERVER.PING";

/// All questions about NATS services: who is there, what it offers, how it does.
pub const SERVICES_ALL: &str = "$SRV.>";

/// The stream behind a bucket.
pub fn bucket_stream(bucket: impl Display) -> String {
    format!("KV_{bucket}")
}

/// A key of a bucket.
pub fn bucket_key(bucket: impl Display, key: impl Display) -> String {
    format!("$KV.{bucket}.{key}")
}

/// All keys of a bucket.
pub fn bucket_all(bucket: impl Display) -> String {
    bucket_key(bucket, super::REST)
}

/// Asks for a stream's configuration and state.
pub fn stream_info(stream: impl Display) -> String {
    format!("$JS.API.STREAM.INFO.{stream}")
}

/// Makes a stream.
pub fn stream_create(stream: impl Display) -> String {
    format!("$JS.API.STREAM.CREATE.{stream}")
}

/// Changes a stream.
pub fn stream_update(stream: impl Display) -> String {
    format!("$JS.API.STREAM.UPDATE.{stream}")
}

/// Takes messages out of a stream, chosen in the body of the request.
pub fn stream_purge(stream: impl Display) -> String {
    format!("$JS.API.STREAM.PURGE.{stream}")
}

/// Reads a message of a stream, chosen in the body of the request.
pub fn direct_get(stream: impl Display) -> String {
    format!("$JS.API.DIRECT.GET.{stream}")
}

/// Reads the last message of a stream on `subject`.
pub fn direct_get_last(stream: impl Display, subject: impl Display) -> String {
    format!("$JS.API.DIRECT.GET.{stream}.{subject}")
}

/// The same question of another server, which calls us by our domain.
pub fn of_our_domain(question: &str) -> String {
    question.replacen("$JS.API.", "$JS.probeops.API.", 1)
}

/// What questions to streams of another account begin with, in place of `$JS.API`, in an account without streams of its own.
pub const LENT: &str = "js.v1";

/// The same said in an account without streams of its own, which has the stream from another.
pub fn lent(subject: &str) -> String {
    format!("{LENT}.{}", subject.strip_prefix("$JS.API.").unwrap_or(subject))
}

/// What is said to streams and buckets, as those say it who keep something in another account: questions and keys of buckets as they are lent, the
/// rest as it is.
pub fn said_by_keepers(subject: &str) -> String {
    if subject.starts_with("$JS.API.") || subject.starts_with("$KV.") { lent(subject) } else { subject.to_owned() }
}

/// Whether a question to a stream has any number of answers, where others have one.
pub fn has_answers(question: &str) -> bool {
    let read = question.strip_prefix("$JS.API.DIRECT.GET.");
    read.is_some_and(|stream| !stream.contains('.')) || question.starts_with("$JS.API.CONSUMER.MSG.NEXT.")
}

/// Makes a consumer that the broker names.
pub fn consumer_create(stream: impl Display) -> String {
    format!("$JS.API.CONSUMER.CREATE.{stream}")
}

/// Makes a consumer `name`, with what follows (its filter).
pub fn consumer_create_named(stream: impl Display, name: impl Display) -> String {
    format!("$JS.API.CONSUMER.CREATE.{stream}.{name}")
}

/// Asks for a consumer's state.
pub fn consumer_info(stream: impl Display, name: impl Display) -> String {
    format!("$JS.API.CONSUMER.INFO.{stream}.{name}")
}

/// Asks a pull consumer for its next messages.
pub fn consumer_next(stream: impl Display, name: impl Display) -> String {
    format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}")
}

/// Where messages of a stream's consumers are acknowledged.
pub fn acknowledgements(stream: impl Display) -> String {
    format!("$JS.ACK.{stream}.>")
}

/// Removes a consumer.
pub fn consumer_delete(stream: impl Display, name: impl Display) -> String {
    format!("$JS.API.CONSUMER.DELETE.{stream}.{name}")
}

/// A client of an account has connected.
pub fn account_connect(account: impl Display) -> String {
    format!("$SYS.ACCOUNT.{account}.CONNECT")
}

/// The account whose clients' coming is told on this subject.
pub fn parse_account_connect(subject: &str) -> Option<String> {
    subject.strip_prefix("$SYS.ACCOUNT.")?.strip_suffix(".CONNECT").map(str::to_owned)
}

/// A client of an account has gone.
pub fn account_disconnect(account: impl Display) -> String {
    format!("$SYS.ACCOUNT.{account}.DISCONNECT")
}

/// Somebody was not let in, on any server.
pub const AUTHENTICATION_ERRORS: &str = "$SYS.SERVER.*.CLIENT.AUTH.ERR";
/// Somebody has gone who never said who he is, such as one without TLS.
pub const STRANGER_DISCONNECT: &str = "$SYS.ACCOUNT.$G.DISCONNECT";

/// Lists the connections of an account; every server answers.
pub fn account_connections(account: impl Display) -> String {
    format!("$SYS.REQ.ACCOUNT.{account}.CONNZ")
}

/// Has a server read its configuration and certificates again.
pub fn server_reload(server: impl Display) -> String {
    format!("$SYS.REQ.SERVER.{server}.RELOAD")
}

/// Ends one connection.
pub fn server_kick(server: impl Display) -> String {
    format!("$SYS.REQ.SERVER.{server}.KICK")
}
