// Runs one job with the types that openapi-typescript makes of the document: where they are wrong, this does not compile.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

type Job = components["schemas"]["JobDocument"];

const { PROBEOPS_URL: baseUrl, PROBEOPS_TOKEN: token } = process.env;
if (baseUrl === undefined || token === undefined) {
  throw new Error("PROBEOPS_URL and PROBEOPS_TOKEN say whom to ask, and as whom");
}
const client = createClient<paths>({ baseUrl, headers: { authorization: `Bearer ${token}` } });

const regions = await client.GET("/v1/regions", { params: { query: { limit: 10 } } });
const region = regions.data?.regions.find((one) => one.region.startsWith("demo-"))?.region;
if (region === undefined) {
  throw new Error(`no region of ours: ${JSON.stringify(regions.error ?? regions.data)}`);
}

const { data, error, response } = await client.POST("/v1/jobs", {
  params: { header: { Prefer: "wait=10" } },
  body: { tool: "tcp", target: "127.0.0.1", parameters: { ports: "1" }, from: region, timeout_ms: 30_000 },
});
if (error !== undefined) {
  throw new Error(`${response.status} ${error.code}: ${error.detail}`);
}
if (typeof data !== "object" || !("results" in data)) {
  throw new Error("told in another form than was asked for");
}
const job: Job = data;
for (const result of job.results ?? []) {
  console.log(job.id, job.status, result.status, result.node?.id, JSON.stringify(result.report ?? result.failure));
}
if (job.status !== "finished" || job.results?.[0]?.status !== "success") {
  throw new Error(`not a finished job: ${JSON.stringify(job)}`);
}

// What is refused has a type, too.
const refused = await client.GET("/v1/jobs/{id}", { params: { path: { id: "019a0000-0000-7000-8000-000000000000" } } });
if (refused.error?.code !== "not_found") {
  throw new Error(`expected not_found: ${JSON.stringify(refused)}`);
}
