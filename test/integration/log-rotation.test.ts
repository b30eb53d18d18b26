import { readdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { systemClock } from "../../agent/lib/clock.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { createLogRotation } from "../../agent/pods/log-rotation.ts";
import type { Runtime } from "../../agent/runtime/port.ts";
import type { LogOptions } from "../../agent/server/logs/options.ts";
import { readLog } from "../../agent/server/logs/reader.ts";
import { busyboxImageName } from "../support/images/images.ts";
import { createTestNode, type TestNode } from "../support/node/node.ts";
import { containerConfig, sandboxConfig } from "../support/runtime/configs.ts";
import { connectRuntime } from "../support/runtime/connect.ts";

let node: TestNode;
let runtime: Runtime;
beforeAll(async () => {
  node = await createTestNode();
  runtime = await connectRuntime(node);
});
afterAll(async () => {
  await runtime?.close();
  await node?.destroy();
});

/** Starts a container that runs `script`. @returns its ID and where its log is */
async function start(script: string) {
  const sandbox = await sandboxConfig(node.dir, node.cgroupRoot);
  const sandboxID = await runtime.runPodSandbox(sandbox, "");
  const config = await containerConfig(sandbox, "main", busyboxImageName, ["sh", "-c", script]);
  const id = await runtime.createContainer(sandboxID, config, sandbox);
  await runtime.startContainer(id);
  return {
    id,
    path: (await runtime.containerStatus(id)).logPath,
    podUID: sandbox.uid,
    [Symbol.asyncDispose]: async () => {
      await runtime.stopPodSandbox(sandboxID);
      await runtime.removePodSandbox(sandboxID);
    },
  };
}

function rotationOf(maxSizeBytes: number, maxFiles: number) {
  return createLogRotation({
    runtime,
    isKnown: () => true,
    podLogsDir: join(node.dir, "pods"),
    maxSizeBytes,
    maxFiles,
    maxWorkers: 2,
    intervalMs: 300,
    clock: systemClock,
    log: silentLogger,
  });
}

const follow: LogOptions = { follow: true, previous: false, timestamps: false, stream: "All" };

/** Follows a log to its end, each piece taken by `take`. @returns everything */
async function followLog(id: string, path: string, take: () => Promise<unknown>): Promise<string> {
  const chunks: Buffer[] = [];
  await readLog(
    path,
    follow,
    {
      clock: systemClock,
      log: silentLogger,
      isRunning: async () => (await runtime.containerStatus(id)).state === "running",
      write: async (chunk) => {
        chunks.push(Buffer.from(chunk));
        await take();
      },
    },
    new AbortController().signal,
  );
  return Buffer.concat(chunks).toString();
}

test("a container that logs fast is followed over many rotations: no line is lost or doubled", async () => {
  const lines = 300_000;
  const script = `sleep 0.5; n=0; while [ $n -lt ${lines / 500} ]; do
    awk -v n=$n 'BEGIN { for (i = 0; i < 500; i++) print "line " n * 500 + i }'; n=$((n + 1)); done; sleep 0.5`;
  await using c = await start(script);
  const stop = new AbortController();
  const rotating = rotationOf(256 * 1024, 100).run(stop.signal);
  try {
    // The slow one is some rotations behind all the time, and reads compressed files in the end.
    const [fast, slow] = await Promise.all([
      followLog(c.id, c.path, () => Promise.resolve()),
      followLog(c.id, c.path, async () => await sleep(100)),
    ]);
    const files = await readdir(dirname(c.path));
    expect(files.filter((name) => /^0\.log\.\d{8}-\d{6}(\.gz)?$/.test(name)).length).toBeGreaterThan(0);
    const want = Array.from({ length: lines }, (_, i) => `line ${i}\n`).join("");
    // Compared before they are shown: a difference of megabytes says nothing.
    expect(firstDifference(fast, want)).toBeUndefined();
    expect(firstDifference(slow, want)).toBeUndefined();
  } finally {
    stop.abort();
    await rotating;
  }
});

test("containerd goes on in the new file, and lines longer than its pieces stay whole", async () => {
  await using c = await start(
    `x=$(head -c 100000 /dev/zero | tr '\\0' x); echo $x; sleep 1.2; echo $x; sleep 1.2; echo end`,
  );
  const rotation = rotationOf(50_000, 3);
  const followed = followLog(c.id, c.path, () => Promise.resolve());
  for (let i = 0; i < 8; i += 1) {
    await sleep(300);
    await rotation.pass();
  }
  expect(await followed).toBe(`${"x".repeat(100_000)}\n`.repeat(2).concat("end\n"));
  const files = (await readdir(dirname(c.path))).sort();
  expect(files.at(0)).toBe("0.log");
  expect(files.length).toBeLessThanOrEqual(3);
  expect(await readFile(c.path, "utf8")).toMatch(/^\S+ stdout F end\n$/);
});

function firstDifference(got: string, want: string): string | undefined {
  if (got === want) return undefined;
  const gotLines = got.split("\n");
  const wantLines = want.split("\n");
  const at = gotLines.findIndex((line, i) => line !== wantLines[i]);
  return `of ${gotLines.length} lines, ${wantLines.length} wanted, line ${at} is ${gotLines[at]}, not ${wantLines[at]}`;
}
