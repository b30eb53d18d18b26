import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import type { Pod } from "../../agent/kube/types.ts";
import { isFinished, isReady, isRunning, openNamespace, type TestNamespace, until } from "./support/cluster.ts";
import { type Kubectl, openKubectl } from "./support/kubectl.ts";
import { podOf, shell } from "./support/pods.ts";

let cluster: TestNamespace;
let kubectl: Kubectl;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
  kubectl = openKubectl(inject("kubeconfig"), cluster.namespace);
});
afterAll(() => cluster[Symbol.asyncDispose]());

const linesOf = (text: string) => (text === "" ? [] : text.replace(/\n$/, "").split("\n"));
const restartCount = ({ status }: Pod) => status?.containerStatuses?.[0]?.restartCount ?? 0;

/** A pod that has ended after writing this. */
async function ended(name: string, script: string): Promise<void> {
  await cluster.createPod(podOf(name, script, { restartPolicy: "Never" }));
  await cluster.waitForPod(name, "finished", isFinished);
}

describe.concurrent("kubectl logs", () => {
  test("shows what a container wrote to both of its streams, also after it has ended", async () => {
    await ended("both", "echo out; sleep 0.2; echo err >&2; sleep 0.2; echo out again");
    expect(await kubectl.demand(["logs", "both"])).toBe("out\nerr\nout again\n");
  });

  test("cuts as --tail, --limit-bytes and --since say, and shows times", async () => {
    await cluster.createPod(podOf("cut", "echo one; echo two; echo three; sleep 6; echo four; sleep 1000"));
    await cluster.waitForPod("cut", "ready", isReady);
    await until("its last line", async () => (await kubectl.demand(["logs", "cut"])).includes("four"));
    const logs = async (...args: string[]) => linesOf(await kubectl.demand(["logs", "cut", ...args]));
    expect(await logs()).toEqual(["one", "two", "three", "four"]);
    expect(await logs("--tail=2")).toEqual(["three", "four"]);
    expect(await logs("--tail=0")).toEqual([]);
    expect(await logs("--tail=99")).toHaveLength(4);
    expect(await kubectl.demand(["logs", "cut", "--limit-bytes=6"])).toBe("one\ntw");
    const withTimes = await logs("--timestamps");
    expect(withTimes[0]).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z one$/);
    // A second before the last line, which is 5 s after the others.
    const since = new Date(Date.parse(withTimes[3]?.split(" ")[0] ?? "") - 1_000).toISOString();
    expect(await logs(`--since-time=${since}`)).toEqual(["four"]);
    expect(await logs("--since=1h", "--tail=1")).toEqual(["four"]);
    expect(await logs("--since=1h")).toHaveLength(4);
  });

  test("joins what the runtime cut: a line of 100 kB, and one without an end", async () => {
    await ended("long", `head -c 100000 /dev/zero | tr '\\0' x; echo; printf 'no end'`);
    expect(await kubectl.demand(["logs", "long"])).toBe(`${"x".repeat(100_000)}\nno end`);
  });

  test("of each container, and of one that has initialised the pod", async () => {
    const init = shell("prepare", "echo preparing");
    const containers = [shell("a", "echo from a; sleep 1000"), shell("b", "echo from b; sleep 1000")];
    await cluster.createPod(podOf("several", containers, { initContainers: [init] }));
    await cluster.waitForPod("several", "ready", isReady);
    expect(await kubectl.demand(["logs", "several", "-c", "a"])).toBe("from a\n");
    expect(await kubectl.demand(["logs", "several", "-c", "b"])).toBe("from b\n");
    expect(await kubectl.demand(["logs", "several", "-c", "prepare"])).toBe("preparing\n");
    const all = await kubectl.demand(["logs", "several", "--all-containers"]);
    expect(linesOf(all).toSorted()).toEqual(["from a", "from b", "preparing"]);
    const { code, stderr } = await kubectl.run(["logs", "several", "-c", "nobody"]);
    expect(code).toBe(1);
    expect(stderr).toContain("container nobody is not valid for pod several");
  });

  test("of the container before this one with --previous, and the reason when there is none", async () => {
    const script = "if [ -e /data/seen ]; then echo second; sleep 1000; fi; touch /data/seen; echo first; exit 1";
    const main = shell("main", script, { volumeMounts: [{ name: "data", mountPath: "/data" }] });
    await cluster.createPod(podOf("twice", [main], { volumes: [{ name: "data", emptyDir: {} }] }));
    await cluster.waitForPod("twice", "restarted", (pod) => restartCount(pod) === 1 && isReady(pod));
    expect(await kubectl.demand(["logs", "twice", "--previous"])).toBe("first\n");
    expect(await kubectl.demand(["logs", "twice"])).toBe("second\n");

    await cluster.createPod(podOf("once", "sleep 1000"));
    await cluster.waitForPod("once", "ready", isReady);
    const { code, stderr } = await kubectl.run(["logs", "once", "--previous"]);
    expect(code).toBe(1);
    expect(stderr).toContain('previous terminated container "main" in pod "once" not found');
  });

  test("says what a container that has not started waits for", async () => {
    const main = shell("main", "true", { image: "registry.invalid/none:1" });
    await cluster.createPod(podOf("waiting", [main]));
    const why = (pod: Pod) => pod.status?.containerStatuses?.[0]?.state?.waiting?.reason ?? "";
    await cluster.waitForPod("waiting", "without an image", (pod) =>
      /^(ErrImagePull|ImagePullBackOff)$/.test(why(pod)),
    );
    const { code, stderr } = await kubectl.run(["logs", "waiting"]);
    expect(code).toBe(1);
    expect(stderr).toMatch(/container "main" in pod "waiting" is waiting to start: .*image/);
  });

  test("-f shows lines as they are written, and ends when the container does", async () => {
    const script = "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.5; done; printf 'the end'";
    await cluster.createPod(podOf("followed", script, { restartPolicy: "Never" }));
    await cluster.waitForPod("followed", "running", isRunning);
    const follow = kubectl.start(["logs", "-f", "followed"]);
    await follow.said("line 2");
    const atFirst = follow.stdout();
    await follow.said("line 4");
    expect(atFirst).not.toContain("line 8");
    const { code, stdout } = await follow.ended;
    expect(code).toBe(0);
    expect(stdout).toBe(`${[1, 2, 3, 4, 5, 6, 7, 8].map((i) => `line ${i}\n`).join("")}the end`);
  });

  test("-f starts where --tail says, and ends when the pod is deleted", async () => {
    await cluster.createPod(podOf("tailed", "echo old; echo older; while true; do sleep 0.2; echo tick; done"));
    await cluster.waitForPod("tailed", "ready", isReady);
    const follow = kubectl.start(["logs", "-f", "--tail=0", "tailed"]);
    await follow.said("tick");
    expect(follow.stdout()).not.toContain("old");
    await cluster.deletePod("tailed");
    expect((await follow.ended).code).toBe(0);
  });

  test("-f of a silent container is connected at once, and costs nobody anything when it is left", async () => {
    await cluster.createPod(podOf("silent", "sleep 3; echo spoke; sleep 1000"));
    await cluster.waitForPod("silent", "ready", isReady);
    const left = kubectl.start(["logs", "-f", "silent"]);
    await sleep(500);
    left.kill("SIGKILL");
    const follow = kubectl.start(["logs", "-f", "silent"]);
    await follow.said("spoke");
    follow.kill("SIGKILL");
    await Promise.all([left.ended, follow.ended]);
  });

  test("finds the end of a large log without reading all of it", async () => {
    // Some 80 MB in CRI's format.
    await ended("large", `yes "$(head -c 1000 /dev/zero | tr '\\0' y)" | head -n 80000; echo last`);
    const begin = performance.now();
    expect(await kubectl.demand(["logs", "large", "--tail=1"])).toBe("last\n");
    expect(performance.now() - begin).toBeLessThan(5_000);
  });
});
