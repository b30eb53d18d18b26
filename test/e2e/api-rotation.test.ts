import { readdir, realpath } from "node:fs/promises";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { isRunning, until } from "./support/cluster.ts";
import { type Kubectl, openKubectl } from "./support/kubectl.ts";
import { type BreakableCluster, openBreakableCluster } from "./support/local.ts";
import { podOf } from "./support/pods.ts";

describe.skipIf(!inject("isLocal"))("logs that grow", () => {
  let own: BreakableCluster;
  let kubectl: Kubectl;

  beforeAll(async () => {
    own = await openBreakableCluster({
      containerLogMaxSize: "64Ki",
      containerLogMaxFiles: 3,
      containerLogMonitorInterval: "3s",
    });
    kubectl = openKubectl(own.local.kubeconfig, own.cluster.namespace);
  });
  afterAll(() => own?.[Symbol.asyncDispose]());

  test("are rotated, and who follows them misses no line and sees none twice", async () => {
    // Some 40 KB a second for 14 s: several rotations.
    const script = `
      line=$(head -c 200 /dev/zero | tr '\\0' z)
      i=0; while [ $i -lt 2800 ]; do i=$((i+1)); echo "$i $line"; [ $((i % 20)) = 0 ] && sleep 0.1; done
      sleep 1`;
    await own.cluster.createPod(podOf("chatty", script, { restartPolicy: "Never" }));
    const { metadata } = await own.cluster.waitForPod("chatty", "running", isRunning);
    const follow = kubectl.start(["logs", "-f", "chatty"], { timeoutMs: 60_000 });
    const linked = join(own.local.podLogsDir, `${own.cluster.namespace}_chatty_${metadata.uid}`, "main");
    // Docker rotates its files itself, beside the one that ours is a link to, and compresses none.
    const isDocker = own.local.runtime.name === "docker";
    const dir = isDocker ? dirname(await realpath(join(linked, "0.log"))) : linked;
    const logFiles = async () => (await readdir(dir)).filter((name) => /\.log(\.|$)/.test(name));
    const rotated = isDocker ? /-json\.log\.2$/ : /\.gz$/;
    await until("rotated files", async () => (await logFiles()).some((name) => rotated.test(name)));
    const { code, stdout } = await follow.ended;
    expect(code).toBe(0);
    const numbers = stdout.split("\n").flatMap((line) => (line === "" ? [] : [Number(line.split(" ")[0])]));
    const first = numbers[0] ?? 0;
    expect(numbers).toEqual(Array.from({ length: numbers.length }, (_, i) => first + i));
    expect(numbers.at(-1)).toBe(2_800);
    expect((await logFiles()).length).toBeLessThanOrEqual(3);
  });
});
