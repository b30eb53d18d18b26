import { mkdir, mkdtemp, readFile, rename, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { stringify } from "yaml";
import { events, pods } from "../../agent/kube/resources.ts";
import type { Pod } from "../../agent/kube/types.ts";
import { freeze } from "../support/node/processes.ts";
import { isReady, isRunning, until } from "./support/cluster.ts";
import { openKubectl } from "./support/kubectl.ts";
import { type BreakableCluster, identityOf, openBreakableCluster, restartAgent, statusIDOf } from "./support/local.ts";
import { podOf, shell, sleeperOf } from "./support/pods.ts";

const mirrorAnnotation = "kubernetes.io/config.mirror";

describe.skipIf(!inject("isLocal"))("static pods", () => {
  let env: BreakableCluster;
  let dir: string;

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), "manifests-"));
    env = await openBreakableCluster({ staticPodPath: dir });
  });
  afterAll(async () => {
    await env?.[Symbol.asyncDispose]();
    await rm(dir, { recursive: true, force: true });
  });

  const inNamespace = (pod: Pod): Pod => ({ ...pod, metadata: { ...pod.metadata, namespace: env.cluster.namespace } });
  /** As careful people do it: readers see the old file or the new one. */
  const put = async (file: string, pod: Pod) => {
    await writeFile(join(dir, `.${file}`), stringify(inNamespace(pod)));
    await rename(join(dir, `.${file}`), join(dir, file));
  };
  const mirrorOf = (name: string) => `${name}-${env.local.node.name}`;
  /** Running containers of pods whose name begins like that, by what the runtime says. */
  const containersOf = async (name: string) =>
    (await env.list()).containers.filter(({ podName, state }) => podName === mirrorOf(name) && state === "running");

  /** A pod that says in a file when it begins and ends. */
  const stamp = (word: string) => {
    const script = `echo ${word} began >> /out/log; trap 'sleep 1; echo ${word} ended >> /out/log; exit 0' TERM; while true; do sleep 0.2 & wait $!; done`;
    const main = shell("main", script, { volumeMounts: [{ name: "out", mountPath: "/out" }] });
    const volumes = [{ name: "out", hostPath: { path: join(dir, ".out") } }];
    return podOf("edited", [main], { terminationGracePeriodSeconds: 10, volumes });
  };
  const stamps = async () => (await readFile(join(dir, ".out", "log"), "utf8")).trim().split("\n");

  test("a manifest becomes a pod, its mirror shows status, owner and source", async () => {
    await put("web.yaml", sleeperOf("web"));
    const mirror = await env.cluster.waitForPod(mirrorOf("web"), "ready", isReady, 20_000);
    const { metadata, spec, status } = mirror;
    expect(metadata.annotations).toMatchObject({
      [mirrorAnnotation]: expect.stringMatching(/^[0-9a-f]{32}$/) as string,
      "kubernetes.io/config.source": "file",
    });
    expect(metadata.ownerReferences).toMatchObject([{ kind: "Node", name: env.local.node.name, controller: true }]);
    expect(spec.tolerations).toContainEqual({ operator: "Exists", effect: "NoExecute" });
    expect(status).toMatchObject({ phase: "Running", qosClass: "BestEffort" });
    const [container] = await containersOf("web");
    expect(status?.containerStatuses?.[0]?.containerID).toBe(statusIDOf(env, container?.id ?? ""));
    expect(container?.podUID).toBe(metadata.annotations?.[mirrorAnnotation]);
    const sandbox = (await env.list()).sandboxes.find(({ id }) => id === container?.sandboxID);
    expect(sandbox?.annotations).toMatchObject({
      "kubernetes.io/config.source": "file",
      "kubernetes.io/config.hash": container?.podUID,
      "kubernetes.io/config.seen": expect.stringMatching(/^\d{4}-.*\.\d{9}Z$/) as string,
    });
  });

  test("logs and exec reach it by its mirror's name", async () => {
    await put("talks.yaml", podOf("talks", "echo hello; trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done"));
    await env.cluster.waitForPod(mirrorOf("talks"), "ready", isReady);
    const kubectl = openKubectl(env.local.kubeconfig, env.cluster.namespace);
    expect(await kubectl.demand(["logs", mirrorOf("talks")])).toBe("hello\n");
    expect(await kubectl.demand(["exec", mirrorOf("talks"), "--", "hostname"])).toBe(`${mirrorOf("talks")}\n`);
    await rm(join(dir, "talks.yaml"));
  });

  test("deleting the mirror stops nothing, and there is a new one", async () => {
    const before = await env.cluster.getPod(mirrorOf("web"));
    await env.cluster.deletePod(mirrorOf("web"));
    const after = await env.cluster.waitForPod(
      mirrorOf("web"),
      "made anew and ready",
      (pod) => pod.metadata.uid !== before.metadata.uid && isReady(pod),
    );
    expect(identityOf(after)).toEqual(identityOf(before));
  });

  test("an edited manifest: the old pod ends before the new one starts", async () => {
    await mkdir(join(dir, ".out"));
    await put("edited.yaml", stamp("first"));
    const before = await env.cluster.waitForPod(mirrorOf("edited"), "ready", isReady);
    await put("edited.yaml", stamp("second"));
    await env.cluster.waitForPod(
      mirrorOf("edited"),
      "the new one, ready",
      (pod) =>
        pod.metadata.annotations?.[mirrorAnnotation] !== before.metadata.annotations?.[mirrorAnnotation] &&
        isReady(pod),
    );
    expect(await stamps()).toEqual(["first began", "first ended", "second began"]);
    expect(await containersOf("edited")).toHaveLength(1);
  });

  test("a UID that the manifest names: taken away and put back while it ends, the pod ends and starts again", async () => {
    const script = "trap 'sleep 2; exit 0' TERM; while true; do sleep 1 & wait $!; done";
    const base = podOf("fixed", script, { terminationGracePeriodSeconds: 10 });
    const fixed = { ...base, metadata: { ...base.metadata, uid: "fixed-uid" } };
    await put("fixed.yaml", fixed);
    await env.cluster.waitForPod(mirrorOf("fixed"), "ready", isReady);
    const [before] = await containersOf("fixed");
    await rm(join(dir, "fixed.yaml"));
    await sleep(700);
    await put("fixed.yaml", fixed);
    const after = await until("another container", async () => {
      const [now, ...others] = await containersOf("fixed");
      return now !== undefined && others.length === 0 && now.id !== before?.id ? now : undefined;
    });
    expect(after.podUID).toBe("fixed-uid");
    await env.cluster.waitForPod(mirrorOf("fixed"), "shown with it", (pod) =>
      (pod.status?.containerStatuses?.[0]?.containerID ?? "").endsWith(after.id),
    );
  });

  test("a manifest that makes no sense is told about, and the others go on", async () => {
    await writeFile(join(dir, "broken.yaml"), "apiVersion: v1\nkind: Pod\nmetadata: {name: broken\n");
    await put("refers.yaml", podOf("refers", "true", { serviceAccountName: "default" }));
    await put("beside.yaml", sleeperOf("beside"));
    await env.cluster.waitForPod(mirrorOf("beside"), "ready", isReady);
    const messages = await until("events about both", async () => {
      const { items } = await env.cluster.client.list(events, { namespace: "default" });
      const found = items.filter(({ reason }) => reason === "FailedValidation").map(({ message }) => message ?? "");
      return found.length >= 2 ? found : undefined;
    });
    expect(messages).toContainEqual(expect.stringMatching(/broken\.yaml is not used: is not valid YAML/));
    expect(messages).toContainEqual(
      expect.stringMatching(/refers\.yaml is not used: spec\.serviceAccountName: must not/),
    );
    await rm(join(dir, "broken.yaml"));
    await rm(join(dir, "refers.yaml"));
  });

  test("manifests behind links that are swapped, as in a mounted ConfigMap", async () => {
    const write = async (version: string) => {
      await mkdir(join(dir, `..${version}`));
      await writeFile(
        join(dir, `..${version}`, "linked.yaml"),
        stringify(inNamespace(sleeperOf("linked", { hostname: version }))),
      );
      await symlink(`..${version}`, join(dir, "..data_tmp"));
      await rename(join(dir, "..data_tmp"), join(dir, "..data"));
    };
    await write("one");
    await symlink("..data/linked.yaml", join(dir, "linked.yaml"));
    const isOf = (hostname: string) => (pod: Pod) => pod.spec.hostname === hostname && isReady(pod);
    await env.cluster.waitForPod(mirrorOf("linked"), "ready", isOf("one"));
    await write("two");
    await env.cluster.waitForPod(mirrorOf("linked"), "the new one, ready", isOf("two"));
    expect(await containersOf("linked")).toHaveLength(1);
  });

  test("killed and started again, the agent finds them as they were", async () => {
    const before = await env.cluster.getPod(mirrorOf("web"));
    await restartAgent(env, "SIGKILL");
    await sleep(3_000);
    const after = await env.cluster.waitForPod(mirrorOf("web"), "ready", isReady);
    expect(after.metadata.uid).toBe(before.metadata.uid);
    expect(identityOf(after)).toEqual(identityOf(before));
    expect(await containersOf("web")).toHaveLength(1);
  });

  test("what the API server says of their end means nothing: after a shutdown they are to run again", async () => {
    const before = await env.cluster.getPod(mirrorOf("web"));
    await env.local.agent.stop();
    const key = { namespace: env.cluster.namespace, name: mirrorOf("web") };
    const status = {
      phase: "Failed",
      reason: "Terminated",
      message: "Pod was terminated in response to imminent node shutdown.",
    };
    await env.cluster.client.patch(pods, key, { status }, { type: "merge", subresource: "status" });
    await env.local.agent.start();
    const after = await env.cluster.waitForPod(mirrorOf("web"), "shown as running again", isRunning);
    expect(after.status?.reason).toBeUndefined();
    expect(identityOf(after)).toEqual(identityOf(before));
  });

  test("they start while the API server is away, and health is served meanwhile", async () => {
    await env.local.agent.stop();
    await freeze(env.local.apiServer.pid);
    await put("early.yaml", sleeperOf("early", { hostNetwork: true }));
    await put("edited.yaml", stamp("third"));
    await env.local.agent.start();
    await until("it runs", async () => (await containersOf("early")).length === 1);
    const { stdout } = await env.local.node.exec("wget", ["-qO-", "http://127.0.0.1:10248/healthz"]);
    expect(stdout).toBe("ok");
    // Edited while no agent ran: what was there before had to go first.
    await until("the edited one runs", async () => (await stamps()).at(-1) === "third began");
    expect(await stamps()).toEqual(["first began", "first ended", "second began", "second ended", "third began"]);
    expect(await containersOf("edited")).toHaveLength(1);
    // Edited before anybody could show it: that takes effect at once, too.
    const [before] = await containersOf("early");
    await put("early.yaml", sleeperOf("early", { hostNetwork: true, hostname: "edited" }));
    await until("the new one runs", async () => {
      const [now, ...others] = await containersOf("early");
      return now !== undefined && others.length === 0 && now.podUID !== before?.podUID;
    });
    process.kill(env.local.apiServer.pid, "SIGCONT");
    const mirror = await env.cluster.waitForPod(mirrorOf("early"), "shown as running", isRunning);
    expect(mirror.status?.podIP).toBe(env.local.node.nodeIP);
    // What ran all the time was not touched.
    expect(await containersOf("web")).toHaveLength(1);
  });

  test("a manifest that is taken away takes pod and mirror with it, also while the agent does not run", async () => {
    await rm(join(dir, "early.yaml"));
    await env.cluster.waitForPodGone(mirrorOf("early"));
    await env.local.agent.stop("SIGKILL");
    await rm(join(dir, "beside.yaml"));
    await env.local.agent.start();
    await env.cluster.waitForPodGone(mirrorOf("beside"));
    await until(
      "nothing of them runs",
      async () => [...(await containersOf("early")), ...(await containersOf("beside"))].length === 0,
    );
  });
});
