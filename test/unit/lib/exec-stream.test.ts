import { fileURLToPath } from "node:url";
import { readFile } from "node:fs/promises";
import { expect, test, vi } from "vitest";
import { exec } from "../../../agent/lib/exec.ts";
import { execStream } from "../../../agent/lib/exec-stream.ts";

const never = new AbortController().signal;

function collector() {
  const chunks: Buffer[] = [];
  const write = (chunk: Buffer) => {
    chunks.push(chunk);
    return Promise.resolve();
  };
  return { write, text: () => Buffer.concat(chunks).toString() };
}

test("hands out both outputs and says how the command ended", async () => {
  const out = collector();
  const result = await execStream("sh", ["-c", "echo out; echo err >&2; exit 3"], { write: out.write, signal: never });
  expect(out.text().split("\n").sort()).toEqual(["", "err", "out"]);
  expect(result).toEqual({ code: 3, failure: "exit", message: "sh exited with 3" });
  expect(await execStream("true", [], { write: out.write, signal: never })).toEqual({
    code: 0,
    message: "true succeeded",
  });
});

test("arguments are no shell's words", async () => {
  const out = collector();
  await execStream("printf", ["%s", "$(id) ; `id`"], { write: out.write, signal: never });
  expect(out.text()).toBe("$(id) ; `id`");
});

test("output of any length comes whole, one piece after the other", async () => {
  let bytes = 0;
  let under = 0;
  const write = async (chunk: Buffer) => {
    under += 1;
    expect(under).toBe(1);
    bytes += chunk.length;
    await new Promise((resolve) => void setImmediate(resolve));
    under -= 1;
  };
  const script = "head -c 5000000 /dev/zero & head -c 5000000 /dev/zero >&2; wait";
  expect((await execStream("sh", ["-c", script], { write, signal: never })).failure).toBeUndefined();
  expect(bytes).toBe(10_000_000);
});

test("a command that is not there", async () => {
  const result = await execStream("/no/such/command", [], { write: collector().write, signal: never });
  expect(result).toMatchObject({ code: undefined, failure: "spawn" });
  expect(result.message).toContain("ENOENT");
});

test("an abort kills it, even if a child of it holds the pipes open", async () => {
  const stop = new AbortController();
  const out = collector();
  const write = async (chunk: Buffer) => {
    await out.write(chunk);
    stop.abort();
  };
  const begunAtMs = performance.now();
  const result = await execStream("sh", ["-c", "echo begin; sleep 1 & exec sleep 5"], { write, signal: stop.signal });
  expect(result).toMatchObject({ failure: "canceled" });
  expect(out.text()).toBe("begin\n");
  expect(performance.now() - begunAtMs).toBeLessThan(900);
  expect(await execStream("true", [], { write, signal: stop.signal })).toMatchObject({ failure: "canceled" });
});

test("an abort ends what the command started, too", async () => {
  const stop = new AbortController();
  const out = collector();
  const write = async (chunk: Buffer) => {
    await out.write(chunk);
    stop.abort();
  };
  await execStream("sh", ["-c", "sleep 30 & echo $!; wait"], { write, signal: stop.signal });
  const pid = Number(out.text());
  const isGone = async () =>
    /^State:\s+Z|^gone/m.test(await readFile(`/proc/${pid}/status`, "utf8").catch(() => "gone"));
  await expect.poll(isGone, { interval: 5 }).toBe(true);
});

// What waits in the kernel, as for a dead server, ignores SIGKILL. Here the signal gets lost instead.
test("a command that cannot be killed is left behind", async () => {
  const kill = vi.spyOn(process, "kill").mockReturnValue(true);
  const stop = new AbortController();
  const out = collector();
  const write = async (chunk: Buffer) => {
    await out.write(chunk);
    stop.abort();
  };
  try {
    const result = await execStream("sh", ["-c", "echo $$; exec sleep 60"], { write, signal: stop.signal });
    expect(result).toMatchObject({ failure: "canceled" });
  } finally {
    kill.mockRestore();
    process.kill(Number(out.text()), "SIGKILL");
  }
});

test("a signal that is not ours", async () => {
  const result = await execStream("sh", ["-c", "kill -TERM $$"], { write: collector().write, signal: never });
  expect(result).toMatchObject({ failure: "signal", message: "sh was killed by SIGTERM" });
});

test("whoever takes no more ends the command", async () => {
  const write = () => Promise.reject(new Error("client gone"));
  await expect(execStream("yes", [], { write, signal: never })).rejects.toThrow("client gone");
});

test("without a free file descriptor it cannot be started, and an abort meanwhile is no error", async () => {
  const module = JSON.stringify(fileURLToPath(new URL("../../../agent/lib/exec-stream.ts", import.meta.url)));
  const script = `
    const { execStream } = await import(${module});
    const { closeSync, openSync } = await import("node:fs");
    const open = [];
    try { for (;;) open.push(openSync("/dev/null")); } catch {}
    const stop = new AbortController();
    const running = execStream("true", [], { write: async () => {}, signal: stop.signal });
    stop.abort();
    const aborted = await running;
    const failed = await execStream("true", [], { write: async () => {}, signal: new AbortController().signal });
    for (const fd of open) closeSync(fd);
    console.log(JSON.stringify([aborted.failure, failed.failure, failed.message]));
  `;
  // Few descriptors are soon used up.
  const limited = 'ulimit -n 100; exec "$0" --input-type=module -e "$1"';
  const { stdout, stderr } = await exec("sh", ["-c", limited, process.execPath, script], { timeoutMs: 4_000 });
  expect(stderr).toBe("");
  expect(JSON.parse(stdout)).toEqual(["canceled", "spawn", "true could not be started (spawn true EMFILE)"]);
});
