import { once } from "node:events";
import type { IncomingMessage } from "node:http";
import { createServer, type Server } from "node:https";
import type { Duplex } from "node:stream";
import { connect, type TLSSocket } from "node:tls";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { nodes, pods } from "../../../agent/kube/resources.ts";
import { startTestApiServer, type TestApiServer } from "../../support/apiserver/server.ts";
import { Client } from "./client.ts";

let server: TestApiServer;
let client: Client;
let kubelet: Server;
let asked: IncomingMessage[] = [];
let askedBy = "";
const sockets = new Set<Duplex>();
const base = "/api/v1/namespaces/default/pods";

beforeAll(async () => {
  server = await startTestApiServer();
  client = new Client(server);
  const pair = server.issueCertificate({ commonName: "n1", usage: "server", names: ["127.0.0.1"] });
  const options = { cert: pair.certificate, key: pair.key, ca: server.caCertificate, requestCert: true };
  kubelet = createServer(options, (request, response) => {
    asked.push(request);
    const { subject } = (request.socket as TLSSocket).getPeerCertificate();
    askedBy = String(subject.CN);
    if (request.url?.includes("/c2") === true) response.writeHead(400).end("container c2 is waiting to start");
    else if (request.url?.includes("follow") === true) response.write("first\n");
    else response.end("log line\n");
  });
  // An upgraded stream that echoes; one to /portForward is refused.
  kubelet.on("upgrade", (request: IncomingMessage, socket: Duplex) => {
    asked.push(request);
    sockets.add(socket);
    if (request.url?.startsWith("/portForward") === true) {
      socket.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
      return;
    }
    socket.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n");
    socket.pipe(socket);
  });
  await new Promise<void>((resolve) => kubelet.listen(0, "127.0.0.1", resolve));
  const address = kubelet.address();
  const Port = typeof address === "object" && address !== null ? address.port : 0;
  server.objects.create(nodes, {
    metadata: { name: "n1" },
    status: {
      conditions: [{ type: "Ready", status: "True" }],
      addresses: [{ type: "InternalIP", address: "127.0.0.1" }],
      daemonEndpoints: { kubeletEndpoint: { Port } },
    },
  });
  const containers = ["c1", "c2"].map((name) => ({ name, image: "i" }));
  server.objects.create(pods, { metadata: { name: "two" }, spec: { containers } });
  server.objects.create(pods, { metadata: { name: "one" }, spec: { containers: containers.slice(0, 1) } });
  server.objects.create(pods, { metadata: { name: "lost" }, spec: { containers, nodeSelector: { none: "such" } } });
});
afterEach(() => {
  asked = [];
});
afterAll(async () => {
  client.close();
  for (const socket of sockets) socket.destroy();
  await server.close();
  await new Promise((resolve) => kubelet.close(resolve));
});

describe("logs", () => {
  test("come from the kubelet, which knows the server by its certificate", async () => {
    const answer = await client.get(`${base}/one/log?tailLines=3&timestamps=true&follow=false`);
    expect([answer.code, answer.text]).toEqual([200, "log line\n"]);
    expect(asked[0]?.url).toBe("/containerLogs/default/one/c1?tailLines=3&timestamps=true");
    expect(askedBy).toBe("kube-apiserver-kubelet-client");
  });

  test("followed logs arrive as they are written", async () => {
    const stop = new AbortController();
    const response = await client.open("GET", `${base}/one/log?follow=true`, { signal: stop.signal });
    const [chunk] = (await once(response, "data")) as [Buffer];
    expect(chunk.toString()).toBe("first\n");
    response.destroy();
  });

  const refusals: [path: string, code: number, message: string][] = [
    ["two/log", 400, "a container name must be specified for pod two, choose one of: [c1 c2]"],
    ["two/log?container=c9", 400, "container c9 is not valid for pod two"],
    ["two/log?container=c2", 400, "container c2 is waiting to start"],
    ["lost/log?container=c1", 400, "pod lost does not have a host assigned"],
    ["none/log", 404, 'pods "none" not found'],
    ["one/exec?command=ls", 400, "Upgrade request required"],
  ];
  test.each(refusals)("%s is refused with %d", async (path, code, message) => {
    const { body } = await client.get(`${base}/${path}`);
    expect(body).toMatchObject({ kind: "Status", code, message });
  });
});

test("the node's proxy passes path and query on, and says when nobody answers", async () => {
  expect((await client.get("/api/v1/nodes/n1/proxy/stats/summary?only=x")).text).toBe("log line\n");
  expect(asked[0]?.url).toBe("/stats/summary?only=x");
  server.objects.create(nodes, {
    metadata: { name: "dead" },
    status: {
      addresses: [{ type: "InternalIP", address: "127.0.0.1" }],
      daemonEndpoints: { kubeletEndpoint: { Port: 1 } },
    },
  });
  const { body } = await client.get("/api/v1/nodes/dead/proxy/healthz");
  expect(body).toMatchObject({
    code: 500,
    message: expect.stringContaining("error dialing backend: dial tcp 127.0.0.1:1"),
  });
});

describe("upgraded streams", () => {
  /** Sends a raw upgrade request and collects the answer. */
  const upgrade = async (path: string, headers: string[] = ["Upgrade: SPDY/3.1"]) => {
    const { hostname, port } = new URL(server.url);
    const { certificate, key } = server.issueCertificate({
      commonName: "u",
      organizations: ["system:masters"],
      usage: "client",
    });
    const socket = connect({
      host: hostname,
      port: Number(port),
      ca: server.caCertificate,
      cert: certificate,
      key,
      ALPNProtocols: ["http/1.1"],
    });
    await once(socket, "secureConnect");
    let text = "";
    socket.on("data", (chunk: Buffer) => (text += chunk.toString("latin1")));
    socket.on("error", () => {});
    socket.write([`POST ${path} HTTP/1.1`, "Host: x", "Connection: Upgrade", ...headers, "", ""].join("\r\n"));
    return { socket, text: () => text };
  };

  test("exec is spliced to the kubelet, bytes as they are", async () => {
    const { socket, text } = await upgrade(
      `${base}/one/exec?command=ls&command=-l&stdin=true&stdout=true&stderr=false&tty=0`,
      ["Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io"],
    );
    await expect.poll(text).toContain("101 Switching Protocols");
    socket.write("\xa1ping", "latin1");
    await expect.poll(text).toMatch(/\r\n\r\n\xa1ping$/);
    const url = new URL(asked[0]?.url ?? "", "https://x");
    expect(url.pathname).toBe("/exec/default/one/c1");
    expect(url.searchParams.getAll("command")).toEqual(["ls", "-l"]);
    expect([...url.searchParams.keys()].filter((k) => k !== "command")).toEqual(["input", "output"]);
    expect(asked[0]?.headers["x-stream-protocol-version"]).toBe("v4.channel.k8s.io");
    socket.destroy();
    expect(server.requests.filter({ resource: "pods/exec" }).at(-1)).toMatchObject({ user: "u", code: 101 });
  });

  test("the kubelet's refusal reaches the client", async () => {
    const { text } = await upgrade(`${base}/one/portforward`);
    await expect.poll(text).toMatch(/403 Forbidden[\s\S]*no$/);
  });

  test("new WebSocket protocols are refused unless the node says it takes them", async () => {
    const headers = ["Upgrade: websocket", "Sec-WebSocket-Protocol: v5.channel.k8s.io,v4.channel.k8s.io"];
    const refused = await upgrade(`${base}/one/exec?command=ls&stdout=1`, headers);
    await expect.poll(refused.text).toContain("does not take WebSocket streams");
    server.objects.patch(
      nodes,
      { name: "n1" },
      { status: { declaredFeatures: ["ExtendWebSocketsToKubelet"] } },
      { subresource: "status" },
    );
    const taken = await upgrade(`${base}/one/exec?command=ls&stdout=1`, headers);
    await expect.poll(taken.text).toContain("101 Switching Protocols");
    taken.socket.destroy();
  });

  test("an unknown container is refused before the kubelet is asked", async () => {
    const { text } = await upgrade(`${base}/one/attach?container=nope`);
    await expect.poll(text).toContain("container nope is not valid for pod one");
    expect(asked).toEqual([]);
  });
});
