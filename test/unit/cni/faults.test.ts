import { chmod, open, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { closeGraceMs } from "../../../cni/index.ts";
import { busyRetries, busyRetryMs, pluginTimeouts, stdoutBytesMax } from "../../../cni/plugins.ts";
import type { CNITarget } from "../../../cni/request.ts";
import { FakeClock } from "../kube/fake-clock.ts";
import { failure, ScriptedNode } from "./scripted-plugins.ts";

let node: ScriptedNode;
beforeEach(async () => {
  node = await ScriptedNode.create();
  await node.plugin("bridge");
  await node.plugin("second");
  await node.network({ cniVersion: "1.0.0", name: "podnet", plugins: [{ type: "bridge" }, { type: "second" }] });
});
afterEach(async () => node[Symbol.asyncDispose]());

const target: CNITarget = { containerID: "abc", netnsPath: "/proc/self/ns/net" };
const undone = ["ADD bridge", "ADD second", "DEL second", "DEL bridge"];
// Long enough for a shell on a busy machine.
const shortMs = 1_000;

/** Polls: what is waited for happens in another process. */
async function until(what: () => Promise<boolean>): Promise<void> {
  for (let i = 0; i < 1_000; i += 1) {
    if (await what().catch(() => false)) return;
    await new Promise((resolve) => void setTimeout(resolve, 5));
  }
  throw new Error(`still not so: ${what.toString()}`);
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

describe("a plugin that fails in ADD", () => {
  const faults: { name: string; script: string; code: string; want: string | RegExp }[] = [
    {
      name: "with an error object",
      script: failure({ cniVersion: "1.0.0", code: 7, msg: "bad config", details: "no subnet\nat all" }),
      code: "Internal",
      want: 'network "podnet": plugin type="second" failed (add): bad config; no subnet at all (error code 7)',
    },
    {
      name: "asking to try again later",
      script: failure({ code: 11, msg: "not yet" }),
      code: "Unavailable",
      want: 'plugin type="second" failed (add): not yet (error code 11)',
    },
    {
      name: "with 255 and garbage after half its work",
      script: `touch half-done; printf 'panic: \\001\\n\\tgoroutine 1'; echo "it broke" >&2; exit 255`,
      code: "Internal",
      want: /plugin type="second" failed \(add\): .*exited with 255: it broke; it printed: panic: goroutine 1$/,
    },
    {
      name: "with 0 and no result",
      script: "exit 0",
      code: "Internal",
      want: "its result cannot be read: it printed nothing",
    },
    {
      name: "with 0 and garbage",
      script: "echo ok",
      code: "Internal",
      want: "its result cannot be read: Unexpected token",
    },
    {
      name: "with an address that is none",
      script: `echo '{"ips":[{"address":"ten"}]}'`,
      code: "Internal",
      want: 'its result cannot be read: ips[0].address: "ten" is no address',
    },
    { name: "by a signal", script: "kill -9 $$", code: "Internal", want: "was killed by SIGKILL" },
    {
      name: "printing without end",
      script: "exec yes",
      code: "Internal",
      want: `it printed more than ${stdoutBytesMax} bytes and was killed`,
    },
    {
      name: "printing too much, and exiting well",
      script: `head -c ${stdoutBytesMax + 1} /dev/zero`,
      code: "Internal",
      want: `it printed more than ${stdoutBytesMax} bytes`,
    },
  ];
  test.each(faults)("$name: the error says so, and the work of all is undone", async ({ script, code, want }) => {
    await node.plugin("second", { ADD: `cd ${node.dir}; ${script}` });
    const failed = await node
      .cni()
      .add(target)
      .catch((err: unknown) => err);
    expect(failed).toMatchObject({ code });
    expect((failed as Error).message).toMatch(want);
    expect((failed as Error).message).not.toContain("\n");
    expect(await node.story()).toEqual(undone);
    expect(await node.records()).toEqual([]);
  });

  test("by hanging: it is killed with what it started, and the work undone", async () => {
    const pidFile = join(node.dir, "pid");
    await node.plugin("second", { ADD: `sleep 1000 & echo $! > ${pidFile}; wait` });
    const cni = node.cni({ timeouts: { verbMs: shortMs } });
    await expect(cni.add(target)).rejects.toMatchObject({
      code: "DeadlineExceeded",
      message: expect.stringContaining(`the plugins of an operation have ${shortMs} ms together`),
    });
    expect(await node.story()).toEqual(undone);
    const pid = Number(await readFile(pidFile, "utf8"));
    await until(async () => Promise.resolve(!isAlive(pid)));
  });

  test("has what those before it have left of the operation's time", async () => {
    const clock = new FakeClock();
    const go = join(node.dir, "go");
    await node.plugin("bridge", { ADD: `until [ -e ${go} ]; do sleep 0.02; done; echo '{}'` });
    await node.plugin("second", { ADD: "sleep 1000" });
    const cni = node.cni({ clock });
    const adding = cni.add(target).catch((err: unknown) => err);
    await until(async () => (await node.story()).includes("ADD bridge"));
    await clock.advance(pluginTimeouts.verbMs);
    await writeFile(go, "");
    expect(await adding).toMatchObject({ code: "DeadlineExceeded" });
    expect(await node.records()).toEqual([]); // undoing has a time of its own
  });

  test("and cannot be undone: both are said, and a later DEL does it with what is on record", async () => {
    await node.plugin("second", { ADD: "exit 1", DEL: failure({ msg: "busy" }) });
    const cni = node.cni();
    await expect(cni.add(target)).rejects.toThrow(
      /failed \(add\): .*exited with 1; cleaning up failed too: plugin type="second" failed \(delete\): busy/,
    );
    // Undoing goes on behind the one that fails.
    expect(await node.story()).toEqual(undone);
    expect(await node.records()).toEqual(["podnet-abc-eth0"]);
    expect(await cni.cachedResult("abc")).toBeUndefined();
    await node.plugin("second");
    await rm(join(node.confDir, "10-net.conflist"));
    await node.cni().del(target);
    expect(await node.records()).toEqual([]);
  });

  test("by being canceled: it is killed, and the work undone", async () => {
    await node.plugin("second", { ADD: "sleep 1000" });
    const stop = new AbortController();
    const adding = node
      .cni()
      .add(target, stop.signal)
      .catch((err: unknown) => err);
    await until(async () => (await node.story()).includes("ADD second"));
    stop.abort();
    expect(await adding).toMatchObject({ code: "Canceled" });
    expect(await node.story()).toEqual(undone);
  });
});

describe("a plugin that cannot be started", () => {
  test("is missing: nothing is begun, and status says so", async () => {
    await rm(join(node.binDir, "second"));
    const cni = node.cni();
    const problem = `network "podnet": failed to find plugin "second" in path [${node.binDir}]`;
    await expect(cni.add(target)).rejects.toMatchObject({ code: "Unavailable", message: problem });
    expect(await cni.status()).toEqual({
      ready: false,
      reason: "NetworkPluginNotReady",
      message: `Network plugin returns error: ${problem}`,
    });
    expect(await node.story()).toEqual([]);
    await node.plugin("second");
    expect(await cni.status()).toMatchObject({ ready: true });
  });

  test("is not executable", async () => {
    await chmod(join(node.binDir, "second"), 0o644);
    await expect(node.cni().add(target)).rejects.toThrow(`${join(node.binDir, "second")} is not executable`);
    expect(await node.story()).toEqual([]);
  });

  test("is no program", async () => {
    await writeFile(join(node.binDir, "second"), "#!/no/such/shell\n", { mode: 0o755 });
    await expect(node.cni().add(target)).rejects.toThrow(/plugin type="second" failed \(add\): .*could not be started/);
    expect((await node.story()).at(-1)).toBe("DEL bridge");
  });

  test("is still being written: it is waited for", async () => {
    const clock = new FakeClock();
    const cni = node.cni({ clock });
    await cni.add({ ...target, containerID: "before" }); // its versions are known
    const writer = await open(join(node.binDir, "second"), "r+");
    const adding = cni.add(target);
    await until(async () => Promise.resolve(clock.waiting > 0));
    await writer.close();
    const isWaitingOrDone = async () => clock.waiting > 0 || (await node.story()).length >= 4;
    for (let tries = 0; tries < busyRetries && (await node.story()).length < 4; tries += 1) {
      await clock.advance(busyRetryMs);
      await until(isWaitingOrDone);
    }
    expect((await adding).ips).toHaveLength(1);
  });
});

describe("close", () => {
  test("waits for what runs, refuses what is new, and kills what does not end, leaving it on record", async () => {
    const clock = new FakeClock();
    await node.plugin("second", { ADD: "sleep 1000" });
    const cni = node.cni({ clock });
    const adding = cni.add(target).catch((err: unknown) => err);
    await until(async () => (await node.story()).includes("ADD second"));
    const closed = cni.close();
    await expect(cni.del(target)).rejects.toMatchObject({ code: "Canceled" });
    await clock.advance(closeGraceMs);
    await closed;
    expect(await adding).toMatchObject({ code: "Canceled" });
    expect(await node.story()).toEqual(["ADD bridge", "ADD second"]);
    expect(await node.records()).toEqual(["podnet-abc-eth0"]);
    await node.plugin("second");
    await node.cni().del(target);
    expect((await node.story()).slice(2)).toEqual(["DEL second", "DEL bridge"]);
  });
});
