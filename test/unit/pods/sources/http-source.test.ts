import { createServer, type IncomingHttpHeaders, type Server, type ServerResponse } from "node:http";
import { createServer as createTLSServer } from "node:https";
import { type AddressInfo, createServer as createTCPServer } from "node:net";
import { getCACertificates, setDefaultCACertificates } from "node:tls";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { Pod } from "../../../../agent/kube/types.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { manifestBytesMax } from "../../../../agent/pods/sources/file-source.ts";
import { httpGet, redirectsMax, requestTimeoutMs } from "../../../../agent/pods/sources/http-get.ts";
import { runHTTPSource } from "../../../../agent/pods/sources/http-source.ts";
import { FakeClock } from "../../kube/fake-clock.ts";
import { authority, makePair } from "../../kube/certificates/support.ts";
import { manifestOf, options } from "./support.ts";

// The first byte of a TLS connection.
const tlsHandshake = 0x16;

let server: Server;
let url: string;
let answer: (response: ServerResponse, path: string) => void;
let requests: { path: string; headers: IncomingHttpHeaders }[];
let stop: AbortController;

beforeEach(async () => {
  requests = [];
  stop = new AbortController();
  server = createServer((request, response) => {
    requests.push({ path: request.url ?? "", headers: request.headers });
    answer(response, request.url ?? "");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/pods?token=hunter2`;
});
afterEach(async () => {
  stop.abort();
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});

const list = (...names: string[]) =>
  JSON.stringify({ apiVersion: "v1", kind: "PodList", items: names.map((name) => manifestOf({}, { name })) });
const says = (status: number, body: string) => (response: ServerResponse) => void response.writeHead(status).end(body);
const checkMs = 20_000;

/** Runs the source against the server; `look` lets it look once more. */
function setUp() {
  const clock = new FakeClock();
  const delivered: string[][] = [];
  const problems: string[] = [];
  const ended = runHTTPSource(
    {
      ...options,
      url,
      headers: { Authorization: ["Bearer hunter2"], "X-More": ["a", "b"] },
      checkMs,
      deliver: (pods: readonly Pod[]) => delivered.push(pods.map(({ metadata }) => metadata.name)),
      onProblem: (message) => problems.push(message),
      clock,
      log: silentLogger,
    },
    stop.signal,
  );
  // Its pass is over when it rests.
  const resting = async () => {
    const deadline = performance.now() + 4_000;
    while (clock.waiting === 0) {
      if (performance.now() > deadline) throw new Error("the source does not come to rest");
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  const look = async () => {
    await clock.advance(checkMs);
    await resting();
  };
  return { delivered, problems, look, resting, ended };
}

test("delivers what the URL answers with, when that changes", async () => {
  answer = says(200, list("a", "b"));
  const { delivered, look, resting, ended } = setUp();
  await resting();
  await look();
  expect(delivered).toEqual([["a-node-1", "b-node-1"]]); // the same bytes are no news
  answer = says(200, JSON.stringify(manifestOf({}, { name: "one" })));
  await look();
  expect(delivered.at(-1)).toEqual(["one-node-1"]);
  answer = says(200, "");
  await look();
  expect(delivered.at(-1)).toEqual([]);
  expect(requests[0]).toMatchObject({
    path: "/pods?token=hunter2",
    headers: { authorization: "Bearer hunter2", "x-more": "a, b" },
  });
  stop.abort();
  await ended;
});

const failures: [what: string, answer: (response: ServerResponse) => void][] = [
  ["an error", says(500, "oops")],
  ["no content", says(204, "")],
  ["a broken connection", (response) => void response.destroy()],
  [
    "half an answer",
    (response) => void response.writeHead(200, { "content-length": "100" }).write("{", () => response.destroy()),
  ],
  ["nonsense", says(200, "<html>")],
  ["a list of bad pods only", says(200, list("_"))],
];
test.each(failures)("%s changes nothing", async (_what, failure) => {
  answer = says(200, list("a"));
  const { delivered, look, resting } = setUp();
  await resting();
  answer = failure;
  await look();
  await look();
  expect(delivered).toEqual([["a-node-1"]]);
  answer = says(200, list("b"));
  await look();
  expect(delivered).toEqual([["a-node-1"], ["b-node-1"]]);
});

test("one bad pod of a list holds up no other, and what it was before stays", async () => {
  const bad = (name: string) => manifestOf({ restartPolicy: "Sometimes" }, { name });
  const listOf = (...items: object[]) => JSON.stringify({ apiVersion: "v1", kind: "PodList", items });
  answer = says(200, list("a", "b", "c"));
  const { delivered, problems, look, resting } = setUp();
  await resting();
  const good = (name: string) => manifestOf({}, { name });
  answer = says(200, listOf(good("a"), bad("b"), bad("new"), { metadata: "?" }, bad("d"), good("d")));
  await look();
  expect(delivered.at(-1)).toEqual(["a-node-1", "d-node-1", "b-node-1"]);
  answer = says(200, listOf(bad("b"), good("e")));
  await look();
  expect(delivered.at(-1)).toEqual(["e-node-1", "b-node-1"]);
  answer = says(200, listOf(good("e")));
  await look();
  expect(delivered.at(-1)).toEqual(["e-node-1"]);
  expect(problems.map((problem) => problem.replace(/must be .*/, "…"))).toEqual([
    "static pod default/b of staticPodURL is not used: spec.restartPolicy: …",
    "static pod default/new of staticPodURL is not used: spec.restartPolicy: …",
    "static pod default/ of staticPodURL is not used: items[3].metadata: …",
    "static pod default/d of staticPodURL is not used: spec.restartPolicy: …",
  ]);
});

test("what cannot be used is told about once, without the URL", async () => {
  answer = says(200, list("_"));
  const { problems, look, resting } = setUp();
  await resting();
  await look();
  answer = says(200, list("_", "a"));
  await look();
  answer = says(200, "<html>");
  await look();
  await look();
  expect(problems).toEqual([
    expect.stringMatching(/^static pod default\/_ of staticPodURL is not used: metadata\.name: must be/),
    expect.stringMatching(/^static pods of staticPodURL are not used: the document: must be a Pod$/),
  ]);
});

test("no message holds what the URL or the headers hold", async () => {
  const failing = [says(500, ""), says(302, ""), (response: ServerResponse) => void response.destroy()];
  for (const each of failing) {
    answer = each;
    const err = await httpGet(url, { A: ["hunter2"] }, stop.signal).catch((e: unknown) => e);
    expect(err instanceof Error ? err.message : "").not.toContain("hunter2");
  }
});

test("redirects are followed, and other hosts are not shown the headers", async () => {
  const other = `http://localhost:${(server.address() as AddressInfo).port}/other`;
  answer = (response, path) => {
    if (path.startsWith("/pods")) response.writeHead(302, { location: "/here" }).end();
    else if (path === "/here") response.writeHead(307, { location: other }).end();
    else response.writeHead(200).end("there");
  };
  expect(await httpGet(url, { Secret: ["hunter2"] }, stop.signal)).toMatchObject({
    status: 200,
    body: Buffer.from("there"),
  });
  expect(requests.map(({ path, headers }) => [path, headers["secret"]])).toEqual([
    ["/pods?token=hunter2", "hunter2"],
    ["/here", "hunter2"],
    ["/other", undefined],
  ]);
});

test("what was meant to be encrypted is not sent in the clear after a redirect", async () => {
  const { key, cert } = await makePair({ usage: "server", names: ["127.0.0.1"] });
  const trusted = getCACertificates("default");
  setDefaultCACertificates([authority.certificate]);
  // Both on one port: the host of the two URLs is the same.
  const secure = createTLSServer({ key, cert }, (_request, response) => {
    response.writeHead(302, { location: `http://127.0.0.1:${port}/clear` }).end();
  });
  const both = createTCPServer((socket) => {
    socket.once("readable", () => {
      const first: unknown = socket.read(1);
      if (!Buffer.isBuffer(first)) return;
      socket.unshift(first);
      (first[0] === tlsHandshake ? secure : server).emit("connection", socket);
    });
  });
  await new Promise<void>((resolve) => both.listen(0, "127.0.0.1", resolve));
  const { port } = both.address() as AddressInfo;
  answer = says(200, "there");
  try {
    const { status } = await httpGet(`https://127.0.0.1:${port}/`, { Secret: ["hunter2"] }, stop.signal);
    expect([status, requests.map(({ path, headers }) => [path, headers["secret"]])]).toEqual([
      200,
      [["/clear", undefined]],
    ]);
  } finally {
    setDefaultCACertificates(trusted);
    secure.closeAllConnections();
    server.closeAllConnections();
    await new Promise((resolve) => both.close(resolve));
  }
});

test("redirects without an end end", async () => {
  answer = (response) => void response.writeHead(302, { location: "/again" }).end();
  await expect(httpGet(url, {}, stop.signal)).rejects.toThrow("more than 10 redirects");
  expect(requests).toHaveLength(redirectsMax + 1);
});

test("redirects lead to HTTP only", async () => {
  answer = (response) => void response.writeHead(302, { location: "file:///etc/shadow" }).end();
  await expect(httpGet(url, {}, stop.signal)).rejects.toThrow("it redirects to what is no HTTP URL");
});

test("an answer that does not end is cut off by its size", async () => {
  answer = (response) => {
    response.writeHead(200);
    const chunk = Buffer.alloc(1 << 20);
    const more = () => void (response.destroyed || response.write(chunk, more));
    more();
  };
  await expect(httpGet(url, {}, stop.signal)).rejects.toThrow(
    `the answer is larger than ${manifestBytesMax >> 20} MiB`,
  );
});

test("nobody waits for an answer when the agent ends, and otherwise 10 s", async () => {
  expect(requestTimeoutMs).toBe(10_000);
  answer = () => {};
  const asking = httpGet(url, {}, stop.signal);
  setImmediate(() => stop.abort());
  await expect(asking).rejects.toMatchObject({ code: "Canceled" });
});
