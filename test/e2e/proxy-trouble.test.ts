import { chmod, mkdir, mkdtemp, readdir, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { events, services } from "../../agent/kube/resources.ts";
import { askFromNode } from "../support/cluster/ask.ts";
import { type LocalCluster, projectRoot, startLocalCluster } from "../support/cluster/local-cluster.ts";
import { isReady, openNamespace, type TestNamespace, until } from "./support/cluster.ts";
import { jobOf, serviceOf, sleeperOf, webOf } from "./support/pods.ts";

const systemDirs = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
const isIptables = (name: string) => /^(ip6?tables|xtables-)/.test(name);
// A failed start is tried again after 5 s, then after twice as long each time.
const retryWaitMs = 120_000;
const healthPort = 10_256;

/** A directory of commands for the agent's PATH, in which iptables can come and go. */
class CommandFarm {
  readonly dir: string;
  readonly #iptables: ReadonlyMap<string, string>;

  private constructor(dir: string, iptables: ReadonlyMap<string, string>) {
    this.dir = dir;
    this.#iptables = iptables;
  }

  static async create(dir: string): Promise<CommandFarm> {
    await mkdir(dir);
    const paths = new Map<string, string>();
    for (const from of systemDirs) {
      for (const name of await readdir(from).catch(() => [])) if (!paths.has(name)) paths.set(name, join(from, name));
    }
    const all = [...paths];
    for (const [name, path] of all.filter(([one]) => !isIptables(one))) await symlink(path, join(dir, name));
    return new CommandFarm(dir, new Map(all.filter(([name]) => isIptables(name))));
  }

  /** Puts commands in the place of all of iptables' that complain as on a kernel without the tables. */
  async breakIptables(): Promise<void> {
    await this.removeIptables();
    const script = `#!/bin/sh
case "$1" in --version) echo "iptables v1.8.9 (nf_tables)" ;; *) echo "can't initialize iptables table 'nat': Table does not exist" >&2; exit 3 ;; esac
`;
    for (const name of this.#iptables.keys()) {
      await writeFile(join(this.dir, name), script);
      await chmod(join(this.dir, name), 0o755);
    }
  }

  async removeIptables(): Promise<void> {
    for (const name of this.#iptables.keys()) await rm(join(this.dir, name), { force: true });
  }

  async restoreIptables(): Promise<void> {
    await this.removeIptables();
    for (const [name, path] of this.#iptables) await symlink(path, join(this.dir, name));
  }
}

describe.skipIf(!inject("isLocal"))("a node whose service proxy is in trouble", () => {
  let dir: string;
  let farm: CommandFarm;
  let local: LocalCluster | undefined;
  let cluster: TestNamespace;

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), "nodelet-e2e-"));
    farm = await CommandFarm.create(join(dir, "bin"));
    const nodelet = join(dir, "nodelet");
    const executable = process.env["NODELET"] ?? join(projectRoot, "dist/nodelet");
    await writeFile(nodelet, `#!/bin/sh\nPATH='${farm.dir}' exec '${executable}' "$@"\n`);
    await chmod(nodelet, 0o755);
    local = await startLocalCluster({ nodelet });
    cluster = await openNamespace(local.kubeconfig);
    await until("the node is Ready", async () => (await cluster.readyNodes()).length === 1);
  });
  afterAll(async () => {
    await cluster?.[Symbol.asyncDispose]();
    await local?.destroy();
    await rm(dir, { recursive: true, force: true });
  });

  const nodeEvents = async (reason: string) => {
    const { items } = await cluster.client.list(events, { namespace: "default" });
    return items.filter((event) => event.reason === reason && event.involvedObject.kind === "Node");
  };
  /** The status and the text of an answer of the proxy's health port; rejects when nobody answers. */
  const health = async (path: "healthz" | "livez") => {
    const { node } = local ?? expect.fail("there is no cluster");
    const response = await fetch(`http://${node.nodeIP}:${healthPort}/${path}`, { signal: AbortSignal.timeout(5_000) });
    return { status: response.status, body: (await response.json()) as Record<string, unknown> };
  };
  /** Shell: asks a service's address until it answers; prints that. */
  const askOnce = (host: string | undefined) =>
    `end=$(($(date +%s) + 60)); until timeout 2 wget -q -O - http://${host}/; do test $(date +%s) -lt $end || exit 1; sleep 0.3; done`;

  test("without iptables says so, runs pods all the same, and programs Services once there is one that works", async () => {
    const told = await until("an event about the missing command", async () => {
      return (await nodeEvents("FailedToStartProxy")).find(({ message }) => message?.includes("ENOENT"));
    });
    expect(told).toMatchObject({ type: "Warning", source: { component: "kube-proxy" } });
    expect(told.message).toMatch(/^the service proxy cannot run on this node: IPv4 services cannot be programmed/);
    expect(told.message).toContain("iptables");
    expect(await health("healthz")).toMatchObject({ status: 503, body: { healthy: false, nodeEligible: true } });
    expect((await health("livez")).status).toBe(503);
    await cluster.createPod(webOf("web", { app: "web" }));
    await cluster.waitForPod("web", "ready", isReady);

    await farm.breakIptables();
    await until(
      "an event about the tables",
      async () =>
        (await nodeEvents("FailedToStartProxy")).find(({ message }) => message?.includes("Table does not exist")),
      retryWaitMs,
    );
    expect((await health("healthz")).status).toBe(503);

    await farm.restoreIptables();
    const spec = { selector: { app: "web" }, ports: [{ port: 80, targetPort: 8080 }] };
    const service = await cluster.create(services, serviceOf("web", spec));
    await until("the proxy is well", async () => (await health("healthz")).status === 200, retryWaitMs);
    const { output } = await cluster.run(jobOf("ask", askOnce(service.spec?.clusterIP)));
    expect(output).toBe("web\n");
    expect(await nodeEvents("Starting")).not.toHaveLength(0);
    expect((await cluster.readyNodes()).length).toBe(1);
  });

  test("whose ports are taken says so, runs pods and programs Services all the same, and answers when they are free", async () => {
    const { node, agent } = local ?? expect.fail("there is no cluster");
    await agent.stop();
    const squat = `for (const port of [10256, 10249]) require("node:http").createServer((_, response) => response.end("squatter")).listen(port)`;
    const squatter = await node.start(process.execPath, ["-e", squat], { name: "squatter" });
    try {
      await until("the ports are taken", async () => {
        return (await askFromNode(node, `http://127.0.0.1:${healthPort}/`).catch(() => "")) === "squatter";
      });
      await agent.start();
      for (const reason of ["FailedToStartProxierHealthcheck", "FailedToStartMetricServer"]) {
        const event = await until(reason, async () => (await nodeEvents(reason))[0]);
        expect(event).toMatchObject({ type: "Warning", source: { component: "kube-proxy" } });
        expect(event.message).toContain("EADDRINUSE");
      }
      await cluster.createPod(sleeperOf("beside"));
      await cluster.waitForPod("beside", "ready", isReady);
      const spec = { selector: { app: "web" }, ports: [{ port: 80, targetPort: 8080 }] };
      const service = await cluster.create(services, serviceOf("later", spec));
      const { output } = await cluster.run(jobOf("ask-later", askOnce(service.spec?.clusterIP)));
      expect(output).toBe("web\n");
    } finally {
      await squatter.stop();
    }
    const notYet = () => undefined;
    await until("the health port answers", async () => (await health("healthz").catch(notYet))?.status === 200);
    await until("the metrics port answers", async () => {
      return (await askFromNode(node, "http://127.0.0.1:10249/proxyMode").catch(notYet)) === "iptables";
    });
  });
});
