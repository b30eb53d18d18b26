import { mkdir, mkdtemp, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { messageOf } from "../../agent/lib/errors.ts";
import { unmountAllUnder } from "../../agent/lib/mount.ts";
import { makeMissingSources } from "../../agent/runtime/docker/mounts.ts";
import { mountSilent } from "../support/silent-mount.ts";

test("paths on a file system that does not answer are named, and take no thread of the agent's", async () => {
  const dir = await mkdtemp(join(tmpdir(), "nodelet-silent-"));
  const silent = join(dir, "silent");
  await mkdir(silent);
  const release = await mountSilent(silent);
  onTestFinished(async () => {
    await release();
    await expect.poll(() => unmountAllUnder(silent).catch(messageOf), { timeout: 20_000 }).toBeUndefined();
    await rm(dir, { recursive: true, force: true });
  });
  const mounts = [dir, join(silent, "volume")].map((hostPath) => ({ hostPath }));
  // More of them than Node has threads for files.
  const creates = Array.from({ length: 6 }, async (_, i) => await makeMissingSources(`create container c${i}`, mounts));
  const outcomes = await Promise.allSettled(creates);
  for (const [i, outcome] of outcomes.entries()) {
    const message = expect.stringContaining(`create container c${i}: path on the node ${silent}/volume: `) as unknown;
    expect(outcome).toMatchObject({ status: "rejected", reason: { code: "DeadlineExceeded", message } });
  }
  expect((await stat(dir)).isDirectory()).toBe(true);
});
