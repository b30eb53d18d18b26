import { chmod, lstat, mkdir, mkdtemp, readdir, rename, rm, stat } from "node:fs/promises";
import { request } from "node:http";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { InspectCommand } from "../../../agent/config/inspect.ts";
import { similarMax } from "../../../agent/explain/answers.ts";
import { runInspect } from "../../../agent/explain/command.ts";
import {
  type ExplainServerOptions,
  listenRetryMs,
  serveExplanations,
  socketCheckMs,
} from "../../../agent/explain/server.ts";
import { systemClock } from "../../../agent/lib/clock.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import type { PodFacts } from "../../../agent/pods/explain.ts";
import { Timeline } from "../../../agent/pods/timeline.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";
import { containerOf, localOf, podOf, snapshot } from "../pods/support.ts";

let rootDir: string;
let ends: (() => Promise<unknown>)[];

beforeEach(async () => {
  rootDir = await mkdtemp(join(tmpdir(), "explain-"));
  ends = [];
});
afterEach(async () => {
  for (const end of ends.reverse()) await end();
  await rm(rootDir, { recursive: true, force: true });
});

function factsOf(name: string, namespace = "ns", changes: Partial<PodFacts> = {}): PodFacts {
  return {
    pod: podOf({ nodeName: "node1" }, { name, namespace, uid: `${namespace}-${name}` }),
    status: { phase: "Running", conditions: [{ type: "Ready", status: "True" }] },
    state: undefined,
    observed: snapshot({ containers: [containerOf()] }),
    local: localOf(),
    lastWords: new Map(),
    networkProblem: "",
    timeline: { entries: [], omitted: 0 },
    ...changes,
  };
}

const socketPath = () => join(rootDir, "nodelet.sock");

/** Resolves when it listens, or has said why it does not. */
async function serve(changes: Partial<ExplainServerOptions> = {}): Promise<() => Promise<void>> {
  const stop = new AbortController();
  const said = Promise.withResolvers<void>();
  const { warn } = changes.log ?? silentLogger;
  const heard = {
    debug: () => said.resolve(),
    warn: (fields: object) => {
      warn(fields);
      said.resolve();
    },
  };
  const options: ExplainServerOptions = {
    rootDir,
    nodeName: "node1",
    clock: systemClock,
    facts: () => [],
    waitsFor: () => "",
    findEnded: () => undefined,
    breathe: () => undefined,
    ...changes,
    log: { ...silentLogger, ...heard } as typeof silentLogger,
  };
  const done = serveExplanations(options, stop.signal);
  const end = async () => {
    stop.abort();
    await done;
  };
  ends.push(end);
  await said.promise;
  return end;
}

interface Said {
  code: number;
  out: string;
  err: string;
}

async function say(
  command: Partial<Extract<InspectCommand, { kind: "explain" }>> | { kind: "pods"; namespace?: string },
): Promise<Said> {
  const said = { out: "", err: "" };
  const full = { kind: "explain", rootDir, namespace: "ns", name: "web", output: "text", ...command } as InspectCommand;
  const code = await runInspect(full, {
    out: (text) => void (said.out += text),
    err: (text) => void (said.err += text),
    columns: 80,
    isColoured: false,
  });
  return { code, ...said };
}

const namespaceOfAll = { kind: "pods", namespace: "" } as const;

describe("an agent that runs", () => {
  test("explains a pod, for people and for programs", async () => {
    await serve({ facts: () => [factsOf("web")] });
    const text = await say({});
    expect(text).toMatchObject({ code: 0, err: "" });
    expect(text.out).toMatch(/^Pod ns\/web on node node1\nRunning for /);
    const json = await say({ output: "json" });
    expect(JSON.parse(json.out)).toMatchObject({ namespace: "ns", name: "web", state: "Running", waitsFor: [] });
  });

  test("of two pods with one name explains the one that stays", async () => {
    const leaving = factsOf("web", "ns", { local: localOf({ terminating: { sinceMs: 0, graceSeconds: 1 } }) });
    const staying = factsOf("web", "ns", { pod: podOf({}, { name: "web", namespace: "ns", uid: "new" }) });
    await serve({ facts: () => [staying, leaving] });
    expect(JSON.parse((await say({ output: "json" })).out)).toMatchObject({ uid: "new" });
  });

  test("lists pods by name, all or those of a namespace", async () => {
    await serve({ facts: () => [factsOf("b"), factsOf("a", "other"), factsOf("a")] });
    const all = await say(namespaceOfAll);
    expect(all.code).toBe(0);
    expect([...all.out.matchAll(/^\S+\/\S+/gm)].map(String)).toEqual(["ns/a", "ns/b", "other/a"]);
    expect((await say({ kind: "pods", namespace: "other" })).out).not.toContain("ns/a");
  });

  test("helps with names that it does not know", async () => {
    const others = Array.from({ length: similarMax + 3 }, (_, i) => factsOf(`web-${i}`, "other"));
    await serve({ facts: () => others });
    const { code, out, err } = await say({});
    expect({ code, out }).toEqual({ code: 1, out: "" });
    expect(err.match(/other\/web-\d/g)).toHaveLength(similarMax);
    const json = await say({ output: "json" });
    expect(json.code).toBe(1);
    expect(JSON.parse(json.out)).toMatchObject({ kind: "unknown", node: "node1" });
  });

  test("tells the end of a pod that is gone", async () => {
    const clock = new FakeClock();
    const ended = new Timeline(podOf(), clock);
    ended.note("gone");
    await serve({ findEnded: (namespace, name) => (`${namespace}/${name}` === "ns/web" ? ended : undefined) });
    expect((await say({})).err).toMatch(/was here and is gone[^]*gone\n$/);
  });

  test("says that it has only just started", async () => {
    await serve({ facts: () => undefined, waitsFor: () => "the container runtime to answer" });
    for (const said of [(await say({})).err, (await say(namespaceOfAll)).out]) {
      expect(said.replace("\n", " ")).toContain("it waits for the container runtime to answer");
    }
  });

  test("answers what it does not know in words, and goes on", async () => {
    await serve({ facts: () => [factsOf("web")] });
    const statusOf = async (path: string, method = "GET") =>
      await new Promise<number | undefined>((resolve, reject) => {
        const asking = request({ socketPath: socketPath(), path, method }, (response) => {
          response.resume();
          response.on("end", () => resolve(response.statusCode));
        });
        asking.on("error", reject);
        asking.end();
      });
    for (const path of ["/", "/secrets", "/pods/a", "/pods/a/b/c", "/pods/%ff/x%"]) {
      expect([404, 200]).toContain(await statusOf(path));
    }
    expect(await statusOf("/pods", "POST")).toBe(405);
    expect((await say({})).code).toBe(0);
  });
});

describe("the socket", () => {
  test("is for its owner alone, and goes with the agent", async () => {
    const end = await serve();
    const { mode } = await lstat(socketPath());
    expect(mode & 0o777).toBe(0o600);
    expect(await readdir(rootDir)).toEqual(["nodelet.sock"]);
    await end();
    expect(await readdir(rootDir)).toEqual([]);
  });

  test("of an agent that was killed is replaced", async () => {
    await abandon(await listen());
    await serve({ facts: () => [factsOf("web")] });
    expect((await say({})).code).toBe(0);
  });

  test("of an agent that lives is left alone, and taken over when that ends", async () => {
    const end = await serve({ facts: () => [factsOf("web")] });
    const before = await stat(socketPath());
    const clock = new FakeClock();
    await serve({ clock, facts: () => [factsOf("web", "ns", { pod: podOf({}, { uid: "second", name: "web" }) })] });
    expect((await stat(socketPath())).ino).toBe(before.ino);
    await end();
    await clock.advance(listenRetryMs);
    for (let i = 0; i < 100 && (await readdir(rootDir)).join() !== "nodelet.sock"; i++) await settle();
    expect(JSON.parse((await say({ output: "json" })).out)).toMatchObject({ uid: "second" });
  });

  test.each([
    { name: "taken away", spoil: async () => await rm(socketPath()) },
    { name: "replaced by one behind which nobody listens", spoil: async () => await abandon(await listen()) },
  ])("is made again after it was $name", async ({ spoil }) => {
    const clock = new FakeClock();
    const end = await serve({ clock, facts: () => [factsOf("web")] });
    await spoil();
    expect((await say({})).code).toBe(1);
    await clock.advance(socketCheckMs);
    await expect.poll(async () => (await say({})).code, { timeout: 4_000 }).toBe(0);
    const { ino, mode } = await stat(socketPath());
    expect(mode & 0o777).toBe(0o600);
    await clock.advance(socketCheckMs * 2);
    expect((await stat(socketPath())).ino).toBe(ino); // this one is in its place
    await end();
    expect(await readdir(rootDir)).toEqual([]);
  });

  test("that another agent put in its place is left alone, and told once", async () => {
    const clock = new FakeClock();
    const said: { err?: string }[] = [];
    const log = { ...silentLogger, warn: (fields: object) => void said.push(fields) } as typeof silentLogger;
    const end = await serve({ clock, log, facts: () => [factsOf("web")] });
    await rm(socketPath());
    await serve({ facts: () => [factsOf("web", "ns", { pod: podOf({}, { uid: "second", name: "web" }) })] });
    for (let i = 0; i < 3; i += 1) {
      await clock.advance(socketCheckMs);
      await expect.poll(() => said.length, { timeout: 4_000 }).toBe(1);
    }
    expect(said[0]?.err).toMatch(/another agent listens at/);
    await end();
    expect(JSON.parse((await say({ output: "json" })).out)).toMatchObject({ uid: "second" });
  });

  test.each([
    { name: "a directory that others may write to", spoil: async () => await chmod(rootDir, 0o777) },
    { name: "something else in its place", spoil: async () => await mkdir(socketPath()) },
  ])("is not made with $name; the agent goes on", async ({ spoil }) => {
    await spoil();
    const clock = new FakeClock();
    const said: unknown[] = [];
    const log = { ...silentLogger, warn: (fields: unknown) => void said.push(fields) } as typeof silentLogger;
    await serve({ clock, log });
    expect(said).toHaveLength(1);
    await clock.advance(listenRetryMs * 3);
    expect(said).toHaveLength(1); // once is enough
    await chmod(rootDir, 0o700);
  });
});

describe("without an agent", () => {
  test("the command says what to do", async () => {
    expect(await say({})).toEqual({
      code: 1,
      out: "",
      err: `nodelet: no agent answers: there is no ${socketPath()}. Is nodelet running? If it was started with --root-dir, say the same here\n`,
    });
  });

  test("but with a socket that it left, too", async () => {
    const server = await listen();
    const inode = (await lstat(socketPath())).ino;
    await abandon(server);
    expect((await lstat(socketPath())).ino).toBe(inode);
    expect((await say({})).err).toMatch(/has ended without taking its socket away/);
  });

  test("but with somebody else behind the socket", async () => {
    const server = await listen((socket) => {
      socket.resume().end("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}");
    });
    ends.push(async () => await new Promise((resolve) => server.close(resolve)));
    expect((await say({})).err).toMatch(/is of another version than this program/);
  });
});

type OnSocket = Parameters<typeof createServer>[1];

async function listen(onSocket?: OnSocket): Promise<Server> {
  const server = createServer(onSocket);
  await new Promise<void>((resolve) => server.listen(join(rootDir, "own"), resolve));
  await rename(join(rootDir, "own"), socketPath());
  return server;
}

// Node.js takes away the path that it was told, which is no longer where the socket is.
async function abandon(server: Server): Promise<void> {
  await new Promise((resolve) => server.close(resolve));
}
