// Asks straight over NATS with @nats-io/transport-node (npm install @nats-io/transport-node): a node for one outcome, the same with what happens
// on the way, the API's front door, and what the broker forbids.
//
//     node ask.mjs tls://127.0.0.1:4222 .probeops/tls/ca.pem .probeops/services/billing.creds billing demo-eu

import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { connect, credsAuthenticator, headers } from "@nats-io/transport-node";

const TIMEOUT_MS = 70_000;
const [server, ca, creds, name, region] = process.argv.slice(2);

const nc = await connect({
  servers: server,
  tls: { caFile: ca },
  authenticator: credsAuthenticator(readFileSync(creds)),
  inboxPrefix: `_INBOX_f.${name}`, // where the front door answers; ours alone: the broker lets nobody else subscribe it
});

// A publication that is not granted is told only here, on the side: whoever waits for an answer to it waits in vain.
const forbidden = (async () => {
  for await (const status of nc.status()) {
    if (status.type === "error") return status.error;
  }
})();

// Publishes, and yields every message of the answer: what it is, and its body.
async function* ask(subject, reply, answers, body, events) {
  const subscription = nc.subscribe(answers);
  const told = headers();
  if (events) told.set("Probe-Events", events);
  nc.publish(subject, JSON.stringify(body), { reply, headers: told });
  for await (const message of subscription) {
    if (message.headers?.code === 503) throw new Error("nobody listens");
    const event = message.headers?.get("Probe-Event") || undefined;
    yield [event, message.data.length ? message.json() : undefined, message];
  }
}

// 1. A node, directly: one question, one outcome. The last token of the answer's subject is the node, which the broker attests.
function direct(parameters) {
  const token = randomBytes(16).toString("hex");
  const job = { request_id: token, tool: "ping", target: "127.0.0.1", parameters };
  return [`job.v1.${region}.ping.${name}`, `_INBOX.${name}.${token}._`, `_INBOX.${name}.${token}.*`, job];
}
for await (const [, outcome, message] of ask(...direct({ count: 1 }))) {
  console.log(`outcome: ${outcome.status} from ${message.subject.split(".").at(-1)}`);
  break;
}

// 2. The same, told as it happens.
for await (const [event, body] of ask(...direct({ count: 2, interval_ms: 100 }), "1")) {
  console.log(`event: ${event} ${JSON.stringify(body?.output?.split("\n").slice(0, 1) ?? [])}`);
  if (event === "outcome") break;
}

// 3. The front door: the body of POST /v1/jobs, with its selectors, retries and audit; the whole job comes back.
const job = { tool: "ping", target: "127.0.0.1", from: region, parameters: { count: 2, interval_ms: 100 } };
const done = (await nc.request(`api.v1.run.${name}`, JSON.stringify(job), { timeout: TIMEOUT_MS })).json();
console.log(`job: ${done.status} with ${done.results.length} outcome`);

// 4. With events, on the same inbox; the answer itself is the message without Probe-Event.
const inbox = `_INBOX_f.${name}.${randomBytes(16).toString("hex")}`;
for await (const [event, body] of ask(`api.v1.run.${name}`, inbox, inbox, job, "1")) {
  console.log(`door: ${event ?? body.status}`);
  if (!event) break;
}

// 5. What is not granted: the front door says so at once, the broker only on the side.
const refused = await nc.request(`api.v1.run.${name}`, JSON.stringify({ ...job, from: "elsewhere" }), { timeout: TIMEOUT_MS });
console.log(`problem: ${refused.headers.get("Nats-Service-Error-Code")} ${refused.json().code}`);
nc.publish(`job.v1.elsewhere.ping.${name}`, "{}");
console.log(`forbidden: ${(await forbidden).message}`);
await nc.close();
