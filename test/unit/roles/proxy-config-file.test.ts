import { mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { systemClock } from "../../../agent/lib/clock.ts";
import { createLogger } from "../../../agent/lib/log.ts";
import { RunningParts } from "../../../agent/roles/parts.ts";
import { watchProxyConfig } from "../../../agent/roles/proxy-config-file.ts";
import { until } from "../../support/test-net.ts";

let versions = 0;
let dir: string;
let file: string;
let lines: string[];
let parts: RunningParts;
let failure: Error | undefined;

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "proxy-config-"));
  file = join(dir, "config.yaml");
  await writeFile(file, "mode: iptables\n");
  lines = [];
  failure = undefined;
});

afterEach(async () => {
  await parts.stop(5_000, systemClock);
  await rm(dir, { recursive: true });
});

async function start(isAlone: boolean): Promise<void> {
  const log = createLogger({ level: "debug", stream: { write: (line) => void lines.push(line) } });
  parts = new RunningParts(log);
  parts.failed.catch((err: unknown) => (failure = err as Error));
  watchProxyConfig({ file, isAlone }, { clock: systemClock, log, parts } as never);
}

/** Other content each time: whenever it was read first, it differs now. */
async function replace(): Promise<void> {
  versions += 1;
  await writeFile(`${file}.new`, `mode: nftables # ${versions}\n`);
  await rename(`${file}.new`, file);
}

test("a proxy of its own ends when its file says something else, not when it is written again", async () => {
  await start(true);
  await writeFile(file, "mode: iptables\n");
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(failure).toBeUndefined();
  await until("the part ends", async () => {
    await replace();
    return failure;
  });
  expect(failure?.message).toContain("config.yaml has changed");
});

test("beside a kubelet it is told", async () => {
  await start(false);
  await until("a warning", async () => {
    await rm(file);
    await replace();
    return lines.some((line) => line.includes("counts from the next start"));
  });
  expect(failure).toBeUndefined();
});
