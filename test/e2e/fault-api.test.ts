import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import type { ExecResult } from "../../agent/lib/exec.ts";
import { services } from "../../agent/kube/resources.ts";
import { askFromNode } from "../support/cluster/ask.ts";
import { isReady, until } from "./support/cluster.ts";
import { type BreakableCluster, identityOf, openBreakableCluster } from "./support/local.ts";
import { jobOf, podOf, serviceOf, shell, sleeperOf, webOf } from "./support/pods.ts";

const awayMs = 20_000;

describe.skipIf(!inject("isLocal"))("an API server", () => {
  let env: BreakableCluster;

  beforeAll(async () => {
    env = await openBreakableCluster();
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  test("that cuts watches, in the middle of a line too, misses no pod", async () => {
    const { cluster, fault } = env;
    for (let i = 0; i < 4; i++) {
      await fault({ cutWatches: { match: { user: `system:node:${env.local.node.name}` }, midLine: i % 2 === 1 } });
      await cluster.createPod(sleeperOf(`cut-${i}`));
    }
    for (let i = 0; i < 4; i++) await cluster.waitForPod(`cut-${i}`, "ready", isReady);
  });

  test("that forgets its history (410) misses no pod", async () => {
    const { cluster, fault } = env;
    await cluster.createPod(sleeperOf("expired"));
    await fault({ compact: true });
    await fault({ cutWatches: { match: {} } });
    await cluster.waitForPod("expired", "ready", isReady);
  });

  test("that answers 429 and 500 in bursts is asked again until it does its work", async () => {
    const { cluster, fault } = env;
    const user = `system:node:${env.local.node.name}`;
    for (const action of [
      { kind: "respond", code: 429, retryAfterSeconds: 1 },
      { kind: "respond", code: 500 },
      { kind: "drop" },
      { kind: "dropAnswer" },
    ]) {
      await fault({ inject: { match: { user }, action, times: 5 } });
      const name = `burst-${action.kind.toLowerCase()}-${action.code ?? 0}`;
      await cluster.createPod(sleeperOf(name));
      const pod = await cluster.waitForPod(name, "ready", isReady);
      expect(pod.status?.containerStatuses?.[0]?.restartCount).toBe(0);
      await cluster.deletePod(name);
      await cluster.waitForPodGone(name);
    }
    await fault({ clear: true });
  });

  test("that falls silent without closing anything is noticed", async () => {
    const { cluster, fault } = env;
    await cluster.createPod(sleeperOf("before-silence"));
    await cluster.waitForPod("before-silence", "ready", isReady);
    await fault({ halfOpenMs: 8_000 });
    await sleep(8_500);
    await cluster.createPod(sleeperOf("after-silence"));
    await cluster.waitForPod("after-silence", "ready", isReady);
  });

  test("that is away for a while: pods and Services go on, a crash is healed, nothing is made anew", async () => {
    const { cluster, local } = env;
    await cluster.createPod(webOf("web", { app: "web" }));
    const crashing = "test -e /data/seen || { touch /data/seen; sleep 6; exit 1; }; while true; do sleep 1; done";
    const main = shell("main", crashing, { volumeMounts: [{ name: "data", mountPath: "/data" }] });
    await cluster.createPod(podOf("crashing", [main], { volumes: [{ name: "data", emptyDir: {} }] }));
    const web = await cluster.waitForPod("web", "ready", isReady);
    await cluster.waitForPod("crashing", "ready", isReady);
    const service = await cluster.create(
      services,
      serviceOf("web", { selector: { app: "web" }, ports: [{ port: 80, targetPort: 8080 }] }),
    );
    const url = `http://${service.spec?.clusterIP}/`;
    expect((await cluster.run(jobOf("ask", `until timeout 2 wget -q -O - ${url}; do sleep 0.2; done`))).output).toBe(
      "web\n",
    );

    const before = identityOf(web);
    const rule = ["INPUT", "-p", "tcp", "--dport", new URL(cluster.client.transport.access.server).port];
    const refuse = [...rule, "-j", "REJECT", "--reject-with", "tcp-reset"];
    const awayFrom = Date.now();
    demand(await local.node.exec("iptables", ["-I", ...refuse]));
    try {
      for (const untilAt = Date.now() + awayMs; Date.now() < untilAt; await sleep(1_000)) {
        expect(await askFromNode(local.node, url)).toBe("web\n");
      }
    } finally {
      demand(await local.node.exec("iptables", ["-D", ...refuse]));
    }
    const backAt = Date.now();
    const healed = await cluster.waitForPod("crashing", "restarted", (pod) => {
      const status = pod.status?.containerStatuses?.[0];
      return status?.restartCount === 1 && status.ready;
    });
    const startedAt = Date.parse(healed.status?.containerStatuses?.[0]?.state?.running?.startedAt ?? "");
    expect(startedAt).toBeGreaterThan(awayFrom - 1_000);
    expect(startedAt).toBeLessThan(backAt - 5_000);
    expect(identityOf(await cluster.getPod("web"))).toEqual(before);
    // It goes on as before.
    await cluster.createPod(sleeperOf("after-away"));
    await cluster.waitForPod("after-away", "ready", isReady);
    await until("the node is Ready", async () => (await cluster.readyNodes()).length === 1);
  });

  test("that is away when the agent starts finds the pods as they were", async () => {
    const { cluster, local } = env;
    await cluster.createPod(sleeperOf("waiting"));
    const before = identityOf(await cluster.waitForPod("waiting", "ready", isReady));
    const rule = ["INPUT", "-p", "tcp", "--dport", new URL(cluster.client.transport.access.server).port];
    const refuse = [...rule, "-j", "REJECT", "--reject-with", "tcp-reset"];
    await local.agent.stop();
    demand(await local.node.exec("iptables", ["-I", ...refuse]));
    try {
      await local.agent.start();
      await sleep(4_000);
      expect(local.agent.isRunning).toBe(true);
    } finally {
      demand(await local.node.exec("iptables", ["-D", ...refuse]));
    }
    await cluster.createPod(sleeperOf("late"));
    await cluster.waitForPod("late", "ready", isReady);
    expect(identityOf(await cluster.getPod("waiting"))).toEqual(before);
  });
});

function demand({ failure, message }: ExecResult): void {
  if (failure !== undefined) throw new Error(message);
}
