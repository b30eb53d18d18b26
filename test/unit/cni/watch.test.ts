import { mkdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { settleMs } from "../../../cni/config-watch.ts";
import { brokenGraceMs, type CNI } from "../../../cni/index.ts";
import { FakeClock } from "../kube/fake-clock.ts";
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

/** Follows the directory; `networks` are the names that came into use, or "none". */
function follow(cni: CNI) {
  const networks: string[] = [];
  const stop = new AbortController();
  const onChange = () => {
    const at = networks.push("?") - 1;
    void cni.status().then(({ ready, message }) => {
      networks[at] = ready ? "ready" : message.includes("no network config") ? "none" : message;
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
    await until(() => seen.join() === "none,ready");
    await node.network(list("b")); // in place
    await until(() => seen.length === 3);
    await writeFile(join(node.dir, "new"), JSON.stringify(list("c")));
    await rename(join(node.dir, "new"), join(node.confDir, "10-net.conflist"));
    await until(() => seen.length === 4);
    await rm(node.confDir, { recursive: true });
    await until(() => seen.at(-1) === "none");
    await node.network(list("d"));
    await until(() => seen.at(-1) === "ready");
  });

  test("a further plugin of the network is a change, another file behind the first is none", async () => {
    await node.network(list("a"));
    const seen = follow(node.cni());
    await until(() => seen.join() === "ready");
    await node.network(list("z"), "90-z.conflist");
    await mkdir(join(node.confDir, "a"));
    await writeFile(join(node.confDir, "a", "x.conf"), JSON.stringify({ type: "missing" }));
    await until(() => seen.length === 2 && (seen[1] ?? "").includes('failed to find plugin "missing"'));
  });

  test("a file that is being written is given time before the next one is taken", async () => {
    const clock = new FakeClock();
    await node.network(list("a"));
    await node.network({ ...list("z"), plugins: [{ type: "missing" }] }, "90-z.conflist");
    const cni = node.cni({ clock });
    const seen = follow(cni);
    await until(() => seen.join() === "ready");
    const write = async (text: string) => {
      const before = clock.waiting;
      await writeFile(join(node.confDir, "10-net.conflist"), text);
      expect(before).toBeGreaterThan(0);
    };
    await write('{"name": "a", ');
    for (let i = 0; i < 5; i += 1) await advance(clock, settleMs);
    expect(await cni.status()).toMatchObject({ ready: true });
    await write(JSON.stringify(list("a")));
    await advance(clock, brokenGraceMs);
    expect(seen).toEqual(["ready"]);
    await write("{");
    for (let i = 0; i < 10 && seen.length === 1; i += 1) await advance(clock, brokenGraceMs);
    expect((await cni.status()).message).toContain('failed to find plugin "missing"');
  });
});

/** Moves time on, and lets the kernel's events and file operations come in around it. */
async function advance(clock: FakeClock, ms: number): Promise<void> {
  await new Promise((resolve) => void setTimeout(resolve, 20));
  await clock.advance(ms);
  await new Promise((resolve) => void setTimeout(resolve, 20));
}
