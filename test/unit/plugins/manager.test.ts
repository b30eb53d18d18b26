import { chmod, mkdir, mkdtemp, rename, rm, symlink, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { untilAborted } from "../../../agent/lib/loop.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { createPluginManager, type PluginManager, registrationBackoff } from "../../../agent/plugins/manager.ts";
import type { PluginHandler, PluginInfo } from "../../../agent/plugins/port.ts";
import type { AnnouncedPlugin, RegistrationClient } from "../../../agent/plugins/registration.ts";
import { FakeClock } from "../kube/fake-clock.ts";

/** The file system tells when it likes: looks again until it has, for as long as a busy machine may need. */
async function until(check: () => boolean): Promise<void> {
  const deadline = performance.now() + 4_000;
  while (!check()) {
    if (performance.now() > deadline) throw new Error("not within 4 s");
    await sleep(5);
  }
}

describe("the plugin manager", () => {
  let dir: string;
  let clock: FakeClock;
  let stop: AbortController;
  let manager: PluginManager;
  let running: Promise<void>;
  let servers: Map<string, Server>;
  /** What was done, in order: `register a`, `deregister a`, `tell a ok`. */
  let log: string[];
  let problems: Map<string, AgentError>;
  let hanging: Set<string>;
  let notifyFails: boolean;
  let type: string;

  const listen = async (path: string) => {
    const full = join(dir, path);
    await mkdir(dirname(full), { recursive: true });
    const server = createServer();
    await new Promise<void>((resolve) => void server.listen(full, resolve));
    servers.set(path, server);
  };
  /** As a process that is killed: the socket stays. */
  const close = async (path: string) => {
    const server = servers.get(path);
    servers.delete(path);
    await new Promise((resolve) => void server?.close(resolve));
  };
  const nameOf = (path: string) => path.slice(dir.length + 1);
  const hang = async (signal: AbortSignal) => {
    await untilAborted(signal);
    signal.throwIfAborted();
  };
  const handler: PluginHandler = {
    register: async (plugin: PluginInfo, signal) => {
      log.push(`register ${plugin.name}`);
      const problem = problems.get(plugin.name);
      if (problem !== undefined) throw problem;
      if (hanging.has(plugin.name)) await hang(signal);
    },
    deregister: async ({ name }) => void log.push(`deregister ${name}`),
  };
  const open = async (path: string): Promise<RegistrationClient> => {
    const name = nameOf(path);
    return {
      info: async (): Promise<AnnouncedPlugin> => ({ type, name, endpoint: path, supportedVersions: ["1.0.0"] }),
      notify: async (problem) => {
        if (notifyFails) throw new AgentError("Unavailable", "it does not listen");
        log.push(`tell ${name} ${problem ?? "ok"}`);
      },
      close: () => {},
    };
  };
  const start = () => {
    manager = createPluginManager({ dir, handlers: { CSIPlugin: handler }, clock, log: silentLogger, open });
    running = manager.run(stop.signal);
  };
  const registered = (name: string) => [`register ${name}`, `tell ${name} ok`];

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), "plugins-"));
    clock = new FakeClock();
    stop = new AbortController();
    servers = new Map();
    log = [];
    problems = new Map();
    hanging = new Set();
    notifyFails = false;
    type = "CSIPlugin";
  });
  afterEach(async () => {
    stop.abort();
    await running;
    for (const path of [...servers.keys()]) await close(path);
    await rm(dir, { recursive: true });
    if (clock.waiting > 0) throw new Error(`${clock.waiting} timers were left behind`);
  });

  test("finds what is there, what comes, and what comes in new directories", async () => {
    await listen("a.sock");
    start();
    await until(() => log.length === 2);
    await listen("b.sock");
    await until(() => log.length === 4);
    await listen("deep/down/c.sock");
    await until(() => log.length === 6);
    expect(log).toEqual([...registered("a.sock"), ...registered("b.sock"), ...registered("deep/down/c.sock")]);
    expect(manager.sockets().registered.map(nameOf)).toEqual(["a.sock", "b.sock", "deep/down/c.sock"]);
  });

  test("leaves alone what is no plugin: dot names, files, links", async () => {
    await listen(".hidden.sock");
    await listen(".hidden/a.sock");
    await writeFile(join(dir, "file.sock"), "");
    await mkdir(`${dir}-elsewhere`);
    try {
      const elsewhere = createServer();
      await new Promise<void>((resolve) => void elsewhere.listen(`${dir}-elsewhere/x.sock`, resolve));
      servers.set("elsewhere", elsewhere);
      await symlink(`${dir}-elsewhere/x.sock`, join(dir, "link.sock"));
      await symlink(`${dir}-elsewhere`, join(dir, "link"));
      await listen("real.sock");
      start();
      await until(() => log.length === 2);
      expect(log).toEqual(registered("real.sock"));
      expect(manager.sockets().seen.map(nameOf)).toEqual(["real.sock"]);
    } finally {
      await rm(`${dir}-elsewhere`, { recursive: true });
    }
  });

  test("a socket that goes is deregistered; one made anew is deregistered, then registered", async () => {
    await listen("a.sock");
    start();
    await until(() => log.length === 2);
    await rm(join(dir, "a.sock"));
    await until(() => log.length === 3);
    expect(log.at(-1)).toBe("deregister a.sock");
    await close("a.sock");

    log.length = 0;
    await listen("a.sock");
    await until(() => log.length === 2);
    await listen("new.sock");
    await until(() => log.length === 4);
    log.length = 0;
    await rename(join(dir, "new.sock"), join(dir, "a.sock"));
    await until(() => log.length === 4);
    expect(log.filter((line) => line.includes(" a.sock"))).toEqual(["deregister a.sock", ...registered("a.sock")]);
    expect(log).toContain("deregister new.sock");
  });

  test("other rights on a socket do not make it another", async () => {
    await listen("a.sock");
    start();
    await until(() => log.length === 2);
    await chmod(join(dir, "a.sock"), 0o700);
    await listen("b.sock");
    await until(() => log.length === 4);
    expect(log).toEqual([...registered("a.sock"), ...registered("b.sock")]);
  });

  test("a plugin that is refused is told why, and tried again later and later", async () => {
    problems.set("a.sock", new AgentError("Invalid", "no version"));
    await listen("a.sock");
    start();
    const once = ["register a.sock", "tell a.sock no version", "deregister a.sock"];
    await until(() => log.length === 3 && clock.waiting > 0);
    expect(log).toEqual(once);
    await clock.advance(registrationBackoff.baseMs - 1);
    expect(log.length).toBe(3);
    await clock.advance(1);
    await until(() => log.length === 6);
    await clock.advance(registrationBackoff.baseMs);
    expect(log.length).toBe(6);
    problems.clear();
    await clock.advance(registrationBackoff.baseMs);
    await until(() => log.length === 8);
    expect(log).toEqual([...once, ...once, ...registered("a.sock")]);
  });

  test("a plugin of a type that nobody handles is told so", async () => {
    type = "ToasterPlugin";
    await listen("a.sock");
    start();
    await until(() => log.length === 1);
    expect(log).toEqual(['tell a.sock plugin a.sock is of type "ToasterPlugin", which this node does not know']);
    expect(manager.sockets()).toMatchObject({ seen: [join(dir, "a.sock")], registered: [] });
  });

  test("a plugin that cannot be told is not in use", async () => {
    notifyFails = true;
    await listen("a.sock");
    start();
    await until(() => log.length === 2);
    expect(log).toEqual(["register a.sock", "deregister a.sock"]);
  });

  test("one that hangs holds up nobody, and is let go when its socket goes", async () => {
    hanging.add("a.sock");
    await listen("a.sock");
    start();
    await until(() => log.length === 1);
    await listen("b.sock");
    await until(() => log.length === 3);
    await rm(join(dir, "a.sock"));
    await until(() => log.length === 4);
    expect(log.at(-1)).toBe("deregister a.sock");
  });

  test("when the agent stops, what is registered stays so and what hangs is dropped", async () => {
    hanging.add("a.sock");
    await listen("a.sock");
    await listen("b.sock");
    start();
    await until(() => log.length === 3);
    stop.abort();
    await running;
    expect(log.filter((line) => line.startsWith("deregister"))).toEqual([]);
  });

  test("a directory that is removed and made again is watched again", async () => {
    await listen("sub/a.sock");
    start();
    await until(() => log.length === 2);
    await rm(join(dir, "sub"), { recursive: true });
    await until(() => log.length === 3);
    await close("sub/a.sock");
    await listen("sub/a.sock");
    await until(() => log.length === 5);
    await listen("sub/b.sock");
    await until(() => log.length === 7);
    expect(log.slice(-2)).toEqual(registered("sub/b.sock"));
  });
});
