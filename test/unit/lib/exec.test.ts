import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { exec, killWaitMs, pipesWaitMs } from "../../../agent/lib/exec.ts";

const timeoutMs = 10_000;

let dir: string;
let pidFile: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-exec-"));
  pidFile = join(dir, "pid");
});
afterEach(async () => {
  await rm(dir, { recursive: true, force: true });
});

async function readPid(): Promise<number> {
  await expect.poll(async () => await readFile(pidFile, "utf8").catch(() => ""), { interval: 5 }).not.toBe("");
  return Number(await readFile(pidFile, "utf8"));
}

/** "R", "S", "Z" and so on; undefined: no such process. */
async function stateOf(pid: number): Promise<string | undefined> {
  expect(pid).toBeGreaterThan(1);
  return /^\d+ \(.*\) (\w)/.exec(await readFile(`/proc/${pid}/stat`, "utf8").catch(() => ""))?.[1];
}

/** Waits until nothing runs under this process ID; a zombie that nobody has reaped yet does not run either. */
async function expectGone(pid: number): Promise<void> {
  await expect.poll(async () => await stateOf(pid), { interval: 5 }).toBeOneOf([undefined, "Z"]);
}

test("says how a command ended, with what it wrote", async () => {
  const ok = await exec("cat", [], { stdin: "in", timeoutMs });
  expect(ok).toMatchObject({ code: 0, stdout: "in", message: "cat succeeded", truncated: false });
  expect(ok.failure).toBeUndefined();
  const script = "echo out; echo why >&2; echo more >&2; exit 3";
  expect(await exec("sh", ["-c", script], { timeoutMs })).toMatchObject({
    ...{ code: 3, failure: "exit", stdout: "out\n", stderr: "why\nmore\n", message: "sh exited with 3: why" },
  });
  expect((await exec("sh", ["-c", script], { timeoutMs, isStderrSecret: true })).message).toBe("sh exited with 3");
  expect(await exec("sh", ["-c", "kill -TERM $$"], { timeoutMs })).toMatchObject({
    failure: "signal",
    signal: "SIGTERM",
  });
  const missing = await exec("/no/such/command", [], { timeoutMs, stdin: "in" });
  expect(missing).toMatchObject({ failure: "spawn", code: undefined });
  expect(missing.message).toContain("ENOENT");
});

test("what the kernel refuses to start is an answer too, also where Node.js throws", async () => {
  const tooLong = await exec("/bin/true", ["x".repeat(1 << 20)], { timeoutMs });
  expect(tooLong).toMatchObject({ failure: "spawn", code: undefined });
  expect(tooLong.message).toBe("/bin/true could not be started (spawn E2BIG)");
});

test("output is kept up to its limit, and the rest read and dropped", async () => {
  const cut = await exec("head", ["-c", "200000", "/dev/zero"], { timeoutMs, outputBytesMax: 10 });
  expect(cut).toMatchObject({ stdout: "\0".repeat(10), truncated: true, code: 0 });
});

test("a timeout kills what the command started, too", async () => {
  const result = await exec("sh", ["-c", "sleep 30 & echo $!; wait"], { timeoutMs: 500 });
  expect(result).toMatchObject({ failure: "timeout", message: "sh did not end within 500 ms" });
  expect(result.durationMs).toBeLessThan(timeoutMs / 2);
  await expectGone(Number(result.stdout));
});

test("a cancellation kills what the command started, too", async () => {
  const stop = new AbortController();
  const running = exec("sh", ["-c", `sleep 30 & echo $! > ${pidFile}.new; mv ${pidFile}.new ${pidFile}; wait`], {
    ...{ timeoutMs, signal: stop.signal },
  });
  const pid = await readPid();
  stop.abort();
  expect(await running).toMatchObject({ failure: "canceled", message: "sh was canceled" });
  await expectGone(pid);
});

test("a command that answered and left something running has answered", async () => {
  const result = await exec("sh", ["-c", "sleep 30 & echo $!"], { timeoutMs });
  const pid = Number(result.stdout);
  try {
    expect(result).toMatchObject({ code: 0, message: "sh succeeded" });
    expect(result.durationMs).toBeLessThan(timeoutMs / 2);
    expect(() => process.kill(pid, 0)).not.toThrow(); // it is the command's own business
  } finally {
    process.kill(pid, "SIGKILL");
  }
  expect(pipesWaitMs).toBe(500);
});

test("once a command has ended, a cancellation comes too late", async () => {
  const stop = new AbortController();
  const script = `sleep 30 & echo $!; echo $$ > ${pidFile}.new; mv ${pidFile}.new ${pidFile}`;
  const running = exec("sh", ["-c", script], { timeoutMs, signal: stop.signal });
  const shell = await readPid();
  await expect.poll(async () => await stateOf(shell), { interval: 5 }).toBeUndefined();
  stop.abort();
  const result = await running;
  process.kill(Number(result.stdout), "SIGKILL");
  expect(result).toMatchObject({ code: 0, message: "sh succeeded" });
});

test("a canceled command is not started", async () => {
  expect(await exec("true", [], { timeoutMs, signal: AbortSignal.abort() })).toMatchObject({
    failure: "canceled",
    message: "true was canceled",
  });
});

// What waits in the kernel, as for a dead server, ignores SIGKILL. Here the signal gets lost instead.
test.each(["timeout", "canceled"] as const)(
  "a command that cannot be killed is left behind after a %s",
  async (why) => {
    const kill = vi.spyOn(process, "kill").mockReturnValue(true);
    const stop = new AbortController();
    try {
      const running = exec("sh", ["-c", `echo $$ > ${pidFile}.new; mv ${pidFile}.new ${pidFile}; exec sleep 60`], {
        ...{ timeoutMs: why === "timeout" ? 200 : 60_000, signal: stop.signal },
      });
      const pid = await readPid();
      if (why === "canceled") stop.abort();
      const { failure, message, durationMs } = await running;
      expect(failure).toBe(why);
      expect(message).toContain(`; process ${pid} hangs in the kernel and cannot be killed`);
      expect(durationMs).toBeGreaterThanOrEqual(killWaitMs);
    } finally {
      kill.mockRestore();
      process.kill(await readPid(), "SIGKILL");
    }
  },
);
