import { once } from "node:events";
import { createServer } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import type { TLSSocket } from "node:tls";
import { describe, expect, test } from "vitest";
import { HttpError } from "../../../../agent/server/port.ts";
import { CertificateAuthority } from "../../../support/apiserver/pki.ts";
import { FakeClock } from "../../kube/fake-clock.ts";
import {
  ask,
  authority,
  Changing,
  namingHandlers,
  pem,
  RawClient,
  samplesOf,
  startServer,
  testAuth,
  until,
} from "./support.ts";

const freePort = async () => {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  return typeof address === "object" && address !== null ? address.port : 0;
};

describe("listeners", () => {
  test("the three ports serve what is theirs", async () => {
    const [readOnlyPort, healthzPort] = [await freePort(), await freePort()];
    await using server = await startServer({ config: { readOnlyPort, healthzPort } });
    const { kubelet } = server.ports;
    expect(await ask(kubelet, "/pods")).toMatchObject({ status: 200, body: "GET pods {}" });
    const open = { tls: false, as: null } as const;
    expect(await ask(readOnlyPort, "/pods", open)).toMatchObject({ status: 200, body: "GET pods {}" });
    expect(await ask(readOnlyPort, "/stats/summary", open)).toMatchObject({ status: 200 });
    expect(await ask(readOnlyPort, "/containerLogs/a/b/c", open)).toMatchObject({
      status: 405,
      body: "Debug endpoints are disabled.\n",
    });
    expect(await ask(readOnlyPort, "/configz", open)).toMatchObject({ status: 404 });
    expect(await ask(healthzPort, "/healthz", open)).toMatchObject({ status: 200, body: "ok" });
    expect(await ask(healthzPort, "/healthz/ping", open)).toMatchObject({ status: 200, body: "ok" });
    expect(await ask(healthzPort, "/pods", open)).toMatchObject({ status: 404, body: "404 page not found\n" });
  });

  test("IPv6 addresses work", async () => {
    await using server = await startServer({ config: { address: "::1" } });
    expect(await ask(server.ports.kubelet, "/pods", { host: "::1" })).toMatchObject({ status: 200 });
  });

  test("a port that is taken ends the server, or is waited for if it is the one for health checks", async () => {
    const taken = createServer().listen(0, "127.0.0.1");
    await once(taken, "listening");
    const { port } = taken.address() as { port: number };
    await expect(startServer({ config: { port } })).rejects.toThrow(/EADDRINUSE/);
    await expect(startServer({ config: { readOnlyPort: port } })).rejects.toThrow(/EADDRINUSE/);

    const clock = new FakeClock();
    const starting = startServer({ config: { enableServer: false, healthzPort: port }, clock });
    await until(() => clock.waiting === 1);
    taken.close();
    await once(taken, "close");
    await clock.advance(5_000);
    const server = await starting;
    expect(await ask(port, "/healthz", { tls: false })).toMatchObject({ body: "ok" });
    await server.stop();
  });

  test("with everything off, it still runs until told", async () => {
    const server = startServer({ config: { enableServer: false } });
    await expect(Promise.race([server, delay(50, "runs")])).resolves.toBe("runs");
  });
});

describe("TLS", () => {
  test("without a certificate every handshake fails; with one, new connections get it and old ones go on", async () => {
    await using server = await startServer();
    const first = server.certificate.current();
    server.certificate.set(undefined);
    const { kubelet } = server.ports;
    await expect(ask(kubelet, "/pods")).rejects.toThrow();
    server.certificate.set(first);
    await using old = await RawClient.tls(kubelet);
    const other = CertificateAuthority.create("other");
    server.certificate.set(pem(other.issue({ commonName: "node", usage: "server", names: ["localhost"] })));
    await expect(ask(kubelet, "/pods")).rejects.toThrow(/certificate/);
    expect(await ask(kubelet, "/pods", { tls: { ca: other.certificate } })).toMatchObject({ status: 200 });
    old.socket.write("GET /pods HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n\r\n");
    await old.until(/GET pods/);
  });

  test("a certificate that does not fit its key leaves the one before", async () => {
    await using server = await startServer();
    const { cert } = pem(authority.issue({ commonName: "a", usage: "server", names: ["localhost"] }));
    const { key } = pem(authority.issue({ commonName: "b", usage: "server" }));
    server.certificate.set({ cert, key });
    expect(await ask(server.ports.kubelet, "/pods")).toMatchObject({ status: 200 });
  });

  const seesPeer = () => {
    const seen: (string | undefined)[] = [];
    const handlers = {
      ...namingHandlers(),
      configz: async ({ request, response }: Parameters<ReturnType<typeof namingHandlers>["configz"]>[0]) => {
        await Promise.resolve();
        const socket = request.socket as TLSSocket;
        seen.push(socket.getPeerX509Certificate()?.subject);
        response.end(`resumed ${socket.isSessionReused()}`);
      },
    };
    return { seen, handlers };
  };

  for (const maxVersion of ["TLSv1.2", "TLSv1.3"] as const) {
    test(`client certificates are asked for, whoever issued them, and sessions are not resumed (${maxVersion})`, async () => {
      const { seen, handlers } = seesPeer();
      const certificate = new Changing(
        pem(authority.issue({ commonName: "n", usage: "server", names: ["localhost"] })),
      );
      const clientCA = new Changing(Buffer.from(authority.certificate));
      await using server = await startServer({ handlers, tls: { options: {}, certificate, clientCA } });
      const stranger = CertificateAuthority.create("stranger").issue({ commonName: "mallory", usage: "client" });
      const client = authority.issue({ commonName: "apiserver", usage: "client" });
      const sessions: Buffer[] = [];
      for (const { certificate: cert, key } of [client, client, stranger]) {
        await using raw = await RawClient.tls(server.ports.kubelet, {
          cert,
          key,
          maxVersion,
          ...(sessions[0] === undefined ? {} : { session: sessions[0] }),
        });
        raw.socket.on("session", (ticket: Buffer) => void sessions.push(ticket));
        raw.socket.write("GET /configz HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n\r\n");
        await raw.until(/resumed false/);
      }
      expect(seen).toEqual(["CN=apiserver", "CN=apiserver", "CN=mallory"]);
      clientCA.set(Buffer.from("no PEM at all"));
      expect(await ask(server.ports.kubelet, "/pods")).toMatchObject({ status: 200 });
      await server.stop();
      expect([certificate.listeners, clientCA.listeners]).toEqual([0, 0]);
    });
  }

  test("a client that offers HTTP/2 gets HTTP/1.1", async () => {
    await using server = await startServer();
    await using raw = await RawClient.tls(server.ports.kubelet, { ALPNProtocols: ["h2", "http/1.1"] });
    expect(raw.socket).toMatchObject({ alpnProtocol: "http/1.1" });
  });
});

describe("who may do what", () => {
  const auth = () =>
    testAuth((user, verb, subresource) => user === "alice" || `${verb} ${subresource}` === "get metrics");

  test("answers are the reference's", async () => {
    await using server = await startServer(auth());
    const { kubelet } = server.ports;
    expect(await ask(kubelet, "/pods", { as: null })).toMatchObject({ status: 401, body: "Unauthorized" });
    expect(await ask(kubelet, "/pods", { as: "wrong" })).toMatchObject({ status: 401, body: "Unauthorized" });
    expect(await ask(kubelet, "/pods", { as: "bob" })).toMatchObject({
      status: 403,
      body: "Forbidden (user=bob, verb=get, resource=nodes, subresource(s)=[pods proxy])\n",
    });
    expect(await ask(kubelet, "/exec/a/b/c", { as: "bob", method: "POST" })).toMatchObject({
      status: 403,
      body: "Forbidden (user=bob, verb=create, resource=nodes, subresource(s)=[proxy])\n",
    });
    expect(await ask(kubelet, "/metrics", { as: "bob" })).toMatchObject({ status: 200 });
    expect(await ask(kubelet, "/stats/summary", { as: "broken" })).toMatchObject({
      status: 500,
      body: "Authorization error (user=broken, verb=get, resource=nodes, subresource=stats)",
    });
  });

  test("what exists is told to those who may know, what is no route at all to everybody", async () => {
    await using server = await startServer(auth());
    const { kubelet } = server.ports;
    expect(await ask(kubelet, "/nothing", { as: null })).toMatchObject({ status: 404, body: "404 page not found\n" });
    expect(await ask(kubelet, "/pods/a", { as: null })).toMatchObject({ status: 401 });
    expect(await ask(kubelet, "/pods/a")).toMatchObject({ status: 404, body: "404: Page Not Found" });
    expect(await ask(kubelet, "/pods", { method: "PUT", as: "bob" })).toMatchObject({ status: 403 });
    expect(await ask(kubelet, "/pods", { method: "PUT" })).toMatchObject({
      status: 405,
      body: "405: Method Not Allowed",
      headers: { allow: "GET" },
    });
    expect(await ask(kubelet, "/pods", { headers: { Accept: "text/html" } })).toMatchObject({ status: 406 });
    expect(await ask(kubelet, "/logs?x=1", { as: null })).toMatchObject({
      status: 307,
      headers: { location: "/logs/?x=1" },
    });
  });

  test("upgrades pass the same gates", async () => {
    await using server = await startServer(auth());
    const upgrade = async (path: string, as: string) => {
      const raw = await RawClient.tls(server.ports.kubelet);
      raw.socket.write(`GET ${path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${as}\r\n`);
      raw.socket.write("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n");
      await raw.closed;
      return raw.text;
    };
    expect(await upgrade("/exec/a/b/c", "wrong")).toMatch(/^HTTP\/1.1 401 Unauthorized\r\n.*\r\n\r\nUnauthorized$/s);
    expect(await upgrade("/exec/a/b/c", "bob")).toMatch(/^HTTP\/1.1 403 .*\[proxy\]\)\n$/s);
    expect(await upgrade("/attach/a/b/c", "broken")).toMatch(/^HTTP\/1.1 500 /);
  });
});

describe("handlers", () => {
  test("an error becomes an answer, or cuts an answer that has begun", async () => {
    const handlers = {
      ...namingHandlers(),
      configz: () => Promise.reject(new HttpError(429, "later", { "Retry-After": "60" })),
      flagz: () => Promise.reject(new Error("it broke")),
      statusz: async ({ response }: Parameters<ReturnType<typeof namingHandlers>["statusz"]>[0]) => {
        response.write("half");
        await delay(10);
        throw new Error("it broke");
      },
    };
    await using server = await startServer({ handlers });
    const { kubelet } = server.ports;
    expect(await ask(kubelet, "/configz")).toMatchObject({
      status: 429,
      body: "later",
      headers: { "retry-after": "60" },
    });
    expect(await ask(kubelet, "/flagz")).toMatchObject({ status: 500, body: "it broke" });
    await expect(ask(kubelet, "/statusz")).rejects.toThrow(/aborted/);
    expect(await ask(kubelet, "/pods")).toMatchObject({ status: 200 });
  });

  test("a handler hears that its client has gone, or closed its side", async () => {
    const aborted: string[] = [];
    const handlers = {
      ...namingHandlers(),
      configz: async ({ response, request, signal }: Parameters<ReturnType<typeof namingHandlers>["configz"]>[0]) => {
        response.write("begun");
        await once(signal, "abort");
        aborted.push(request.url ?? "");
      },
    };
    await using server = await startServer({ handlers });
    for (const how of ["destroy", "end"] as const) {
      const raw = await RawClient.tls(server.ports.kubelet);
      raw.socket.write(`GET /configz?${how} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n\r\n`);
      await raw.until(/begun/);
      if (how === "end") raw.socket.end();
      else raw.socket.destroy();
      await until(() => aborted.includes(`/configz?${how}`));
      await raw.closed;
    }
    expect(aborted).toHaveLength(2);
  });

  test("requests are counted by bounded labels, also those that nobody may make", async () => {
    await using server = await startServer();
    const { kubelet } = server.ports;
    await ask(kubelet, "/pods", { as: null });
    await ask(kubelet, "/metrics/cadvisor");
    await ask(kubelet, "/exec/a/b/c", { method: "POST" });
    await ask(kubelet, "/secret-path", { method: "PROPFIND" });
    expect(await samplesOf(server.registry, "kubelet_http_requests_total")).toEqual([
      "long_running=false method=GET path=pods server_type=readwrite 1",
      "long_running=false method=GET path=metrics/cadvisor server_type=readwrite 1",
      "long_running=true method=POST path=exec server_type=readwrite 1",
      "long_running=false method=other path=other server_type=readwrite 1",
    ]);
    const inflight = await samplesOf(server.registry, "kubelet_http_inflight_requests");
    expect(inflight.every((line) => line.endsWith(" 0"))).toBe(true);
    const durations = await samplesOf(server.registry, "kubelet_http_requests_duration_seconds");
    expect(durations.filter((line) => line.startsWith("_count"))).toHaveLength(4);
  });
});

describe("upgrades", () => {
  const head = (path: string, more = "") =>
    `POST ${path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n${more}\r\n`;

  test("the socket and what was sent ahead reach the handler; both ends close", async () => {
    await using server = await startServer();
    await using raw = await RawClient.tls(server.ports.kubelet);
    raw.socket.write(`${head("/exec/ns/pod/ctr?command=ls")}ahead`);
    expect(await raw.until(/\r\n\r\n.*ahead/s)).toMatch(
      /exec \{"namespace":"ns","pod":"pod","container":"ctr"\} ahead$/,
    );
    raw.socket.write("more");
    await raw.until(/more$/);
    raw.socket.end("last");
    await raw.closed;
    expect(raw.text).toMatch(/last$/);
  });

  test("an Upgrade header elsewhere changes nothing", async () => {
    await using server = await startServer();
    await using raw = await RawClient.tls(server.ports.kubelet);
    raw.socket.write(head("/containerLogs/a/b/c").replace("POST", "GET"));
    await raw.until(/200 OK.*GET containerLogs/s);
    raw.socket.write(head("/run/a/b/c", "Content-Length: 2\r\n"));
    raw.socket.write("hi");
    await raw.until(/POST run/);
    raw.socket.write(head("/nowhere"));
    expect(await raw.until(/404 page not found/)).toMatch(/Not Found/);
  });

  test("behind requests that are not answered, it is an ordinary request", async () => {
    await using server = await startServer();
    await using raw = await RawClient.tls(server.ports.kubelet);
    raw.socket.write(`GET /pods HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n\r\n${head("/exec/a/b/c")}`);
    expect(await raw.until(/GET pods.*200 OK.*POST exec/s)).not.toMatch(/101/);
  });

  test("errors before the handler wrote are plain answers, later ones close the socket", async () => {
    const { exec, ...others } = namingHandlers();
    const handlers = {
      ...others,
      exec: { ...exec, upgrade: () => Promise.reject(new HttpError(404, "pod does not exist")) },
      attach: {
        ...exec,
        upgrade: async ({ socket }: Parameters<typeof exec.upgrade>[0]) => {
          socket.write("HTTP/1.1 101 Switching Protocols\r\n\r\n");
          await Promise.reject(new Error("it broke"));
        },
      },
    };
    await using server = await startServer({ handlers });
    for (const [path, want] of [
      ["/exec/a/b/c", /^HTTP\/1.1 404 Not Found\r\n.*Connection: close.*\r\n\r\npod does not exist$/s],
      ["/attach/a/b/c", /^HTTP\/1.1 101 Switching Protocols\r\n\r\n$/],
    ] as const) {
      await using raw = await RawClient.tls(server.ports.kubelet);
      raw.socket.write(head(path));
      await raw.closed;
      expect(raw.text).toMatch(want);
    }
  });
});

describe("the end", () => {
  test("idle connections end at once, handlers are told, and what stays is cut", async () => {
    const told: string[] = [];
    const never = new Promise<void>(() => {});
    const handlers = {
      ...namingHandlers(),
      configz: async ({ response, signal }: Parameters<ReturnType<typeof namingHandlers>["configz"]>[0]) => {
        response.write("begun");
        await once(signal, "abort");
        told.push("configz");
        await never;
      },
    };
    const server = await startServer({ handlers });
    const idle = await RawClient.tls(server.ports.kubelet);
    const busy = await RawClient.tls(server.ports.kubelet);
    const stream = await RawClient.tls(server.ports.kubelet);
    busy.socket.write("GET /configz HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n\r\n");
    stream.socket.write(
      "GET /exec/a/b/c HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\nConnection: Upgrade\r\nUpgrade: X\r\n\r\n",
    );
    await busy.until(/begun/);
    await stream.until(/101/);
    const stopped = server.stop();
    await idle.closed;
    await Promise.all([busy.closed, stream.closed, stopped]);
    expect(told).toEqual(["configz"]);
    await expect(ask(server.ports.kubelet, "/pods")).rejects.toThrow(/ECONNREFUSED/);
  });
});
