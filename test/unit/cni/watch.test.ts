import { mkdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { brokenGraceMs, type ConfigDir, decideTakeOver } from "../../../cni/config-dir.ts";
import { messageOf } from "../../../agent/lib/errors.ts";
import type { CNI } from "../../../cni/index.ts";
import { until } from "../kube/support.ts";
import { ScriptedNode } from "./scripted-plugins.ts";

let node: ScriptedNode;
let stack: AsyncDisposableStack;
beforeEach(async () => {
  stack = new AsyncDisposableStack();
  node = stack.use(await ScriptedNode.create());
  await node.plugin("bridge");
});
afterEach(async () => stack.disposeAsync());

const list = (name: string) => ({ cniVersion: "1.0.0", name, plugins: [{ type: "bridge" }] });

/** Follows the directory; `networks` are the names that came into use, "none", or what is wrong. */
function follow(cni: CNI) {
  const networks: string[] = [];
  const stop = new AbortController();
  const target = { containerID: "abc", netnsPath: "/proc/self/ns/net" };
  const onChange = () => {
    const at = networks.push("?") - 1;
    const using = async () => {
      await cni.add(target);
      const last = (await node.calls()).findLast(({ command }) => command === "ADD");
      return String(last?.input["name"]);
    };
    const problem = (err: unknown) => (messageOf(err).includes("no network config") ? "none" : messageOf(err));
    void using()
      .catch(problem)
      .then((network) => {
        networks[at] = network;
      });
  };
  const ended = cni.watch(stop.signal, onChange);
  stack.defer(async () => {
    stop.abort();
    await ended;
  });
  return networks;
}

describe("watch", () => {
  test("a directory that appears later, files that come, are rewritten in place, replaced, and go", async () => {
    await rm(node.confDir, { recursive: true });
    const cni = node.cni();
    const seen = follow(cni);
    await until(() => seen.join() === "none");
    await mkdir(node.confDir);
    await node.network(list("a"));
    await until(() => seen.join() === "none,a");
    await node.network(list("b")); // in place
    await until(() => seen.join() === "none,a,b");
    await writeFile(join(node.dir, "new"), JSON.stringify(list("c")));
    await rename(join(node.dir, "new"), join(node.confDir, "10-net.conflist"));
    await until(() => seen.join() === "none,a,b,c");
    await rm(node.confDir, { recursive: true });
    await until(() => seen.at(-1) === "none");
    await node.network(list("d"));
    await until(() => seen.at(-1) === "d");
  });

  test("a further plugin of the network is a change, another file behind the first is none", async () => {
    await node.network(list("a"));
    const seen = follow(node.cni());
    await until(() => seen.join() === "a");
    await node.network(list("z"), "90-z.conflist");
    await mkdir(join(node.confDir, "a"));
    await writeFile(join(node.confDir, "a", "x.conf"), JSON.stringify({ type: "missing" }));
    await until(() => seen.length === 2 && (seen[1] ?? "").includes('failed to find plugin "missing"'));
  });

  test("what a question finds before the watch does is a change too, told once", async () => {
    await node.network(list("a"));
    const cni = node.cni();
    const seen = follow(cni);
    await Promise.all([cni.status(), cni.status(), cni.status()]);
    await until(() => seen.join() === "a");
    expect(await cni.status()).toMatchObject({ ready: true });
    expect(seen).toEqual(["a"]);
  });

  test("a file that stays broken gives way to the next one", async () => {
    await node.network(list("a"));
    await node.network({ ...list("z"), plugins: [{ type: "missing" }] }, "90-z.conflist");
    const seen = follow(node.cni());
    await until(() => seen.join() === "a");
    await writeFile(join(node.confDir, "10-net.conflist"), "{");
    await until(() => seen.length === 2 && (seen[1] ?? "").includes('failed to find plugin "missing"'));
  });
});

describe("decideTakeOver", () => {
  const good = (file: string): ConfigDir => ({ config: undefined, file, problems: [] });
  const broken: ConfigDir = { config: undefined, file: "/d/90", problems: ["/d/10: file: is no JSON"] };
  const cases: { name: string; inUse?: ConfigDir; next: ConfigDir; since?: number; nowMs: number; want: object }[] = [
    { name: "the first look", next: broken, nowMs: 5, want: { takeOver: true } },
    { name: "another file", inUse: good("/d/10"), next: good("/d/05"), nowMs: 5, want: { takeOver: true } },
    { name: "a file that has gone", inUse: good("/d/10"), next: good("/d/90"), nowMs: 5, want: { takeOver: true } },
    { name: "another file is broken", inUse: good("/d/90"), next: broken, nowMs: 5, want: { takeOver: true } },
    {
      name: "the file in use breaks: it may be being written",
      inUse: good("/d/10"),
      next: broken,
      nowMs: 5,
      want: { takeOver: false, brokenSinceMs: 5, waitMs: brokenGraceMs },
    },
    {
      name: "and is broken still",
      inUse: good("/d/10"),
      next: broken,
      since: 5,
      nowMs: 105,
      want: { takeOver: false, brokenSinceMs: 5, waitMs: brokenGraceMs - 100 },
    },
    {
      name: "and was for long enough",
      inUse: good("/d/10"),
      next: broken,
      since: 5,
      nowMs: 5 + brokenGraceMs,
      want: { takeOver: true },
    },
  ];
  for (const { name, inUse, next, since, nowMs, want } of cases) {
    test(name, () => expect(decideTakeOver(inUse, next, since, nowMs)).toEqual(want));
  }
});
