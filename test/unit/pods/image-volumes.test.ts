import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { Container, Pod, Volume } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { Executor, type ExecutorDeps, type StepContext } from "../../../agent/pods/executor.ts";
import { imageVolumesOf } from "../../../agent/pods/image-volumes.ts";
import type { ReadyImage } from "../../../agent/pods/local.ts";
import type { ContainerConfig } from "../../../agent/runtime/port.ts";
import { createPodVolumes } from "../../../agent/volumes/manager.ts";
import { info, setUp as setUpImages } from "../runtime/images-support.ts";
import { FakeObjects, makeTempDir } from "../volumes/support.ts";
import { podOf, sandboxOf, snapshot } from "./support.ts";

const never = new AbortController().signal;
const model: Volume = { name: "model", image: { reference: "registry.local/model:1", pullPolicy: "Always" } };
const reader: Container = {
  name: "reader",
  image: "app:1",
  imagePullPolicy: "IfNotPresent",
  volumeMounts: [{ name: "model", mountPath: "/model", subPathExpr: "$(PART)", readOnly: true }],
  env: [{ name: "PART", value: "weights" }],
};

let dir: string;
let cleanUp: () => Promise<void>;
beforeEach(async () => {
  ({ dir, cleanUp } = await makeTempDir());
});
afterEach(() => cleanUp());

/** An executor with real volumes and a real image manager over a runtime of a script. */
function scripted(pod: Pod) {
  const events: string[] = [];
  const created: ContainerConfig[] = [];
  const started: string[] = [];
  const removed: string[] = [];
  const objects = new FakeObjects();
  const note = (what: { fieldPath?: string | undefined }, type: string, reason: string, message: string) =>
    events.push(`${what.fieldPath ?? "pod"} ${type} ${reason}: ${message}`);
  const { images, clock, manager } = setUpImages({
    onEvent: (_pod, { name }, type, reason, message) =>
      note({ fieldPath: name === "" ? undefined : `{${name}}` }, type, reason, message),
  });
  const volumes = createPodVolumes({
    rootDir: dir,
    client: undefined,
    objects,
    clock,
    log: silentLogger,
    nodeAllocatable: () => ({}),
    selinuxEnabled: true,
  });
  const deps = {
    clock,
    log: silentLogger,
    images: manager,
    volumes,
    objects,
    recorder: { event: note },
    services: { hasSynced: true, get: () => undefined, byIndex: () => [] },
    cgroups: { parentFor: () => "/pods/u1" },
    node: { hostIPs: () => ["10.0.0.1"], allocatable: () => ({}), hasRecursiveReadOnly: () => false },
    resizes: { starting: async () => {} },
    runtime: {
      createContainer: async (_sandbox: string, config: ContainerConfig) => {
        created.push(config);
        return `${config.name}-id`;
      },
      startContainer: async (id: string) => void started.push(id),
      removeContainer: async (id: string) => void removed.push(id),
    },
    settings: {
      rootDir: dir,
      podLogsDir: join(dir, "logs"),
      containerLogsDir: join(dir, "links"),
      clusterDNS: [],
      clusterDomain: "cluster.local",
      readResolvConf: async () => undefined,
      seccompDefault: false,
      resources: {
        cgroupVersion: 2,
        memoryCapacityBytes: 2 ** 30,
        cpuCFSQuota: true,
        cpuPeriodUs: 100_000,
        hugePageSizes: [],
        singleProcessOOMKill: false,
        swapControllerAvailable: false,
        swapBehavior: "NoSwap",
        swapCapacityBytes: 0,
      },
      selinuxEnabled: true,
    },
  } as unknown as ExecutorDeps;
  const executor = new Executor(deps);
  const context: StepContext = {
    pod,
    observed: snapshot({ sandboxes: [sandboxOf({ runtimeHandler: "gvisor" })] }),
    podIPs: ["10.1.0.2"],
    images: new Map<string, ReadyImage>(),
    maskedPaths: [],
    signal: never,
    hookSignal: never,
  };
  return { images, clock, events, created, started, removed, objects, volumes, context, executor };
}

const podWith = (...containers: Container[]) =>
  podOf(
    { containers, volumes: [model], dnsPolicy: "Default", enableServiceLinks: true },
    { annotations: { team: "ml" } },
  );

describe("imageVolumesOf", () => {
  const two: Container = { name: "a", volumeMounts: ["x", "x", "y"].map((name) => ({ name, mountPath: "/v" })) };
  test("names each mounted image volume once, and no others", () => {
    const volumes: Volume[] = [
      { name: "x", image: { reference: "x:1" } },
      { name: "y", emptyDir: {} },
      { name: "z", image: { reference: "z:1" } },
    ];
    expect(imageVolumesOf(podOf({ volumes }), two)).toEqual([{ volume: "x", user: { name: "", image: "x:1" } }]);
  });
});

describe("an image volume", () => {
  test("is pulled by its own policy and mounted by the runtime, with its subPath in the image", async () => {
    const { executor, context, created, images, volumes, events } = scripted(podWith(reader));
    await volumes.setUp(context.pod, never);
    await executor.execute({ kind: "EnsureImage", container: "reader" }, context);
    expect(images.pulls.map(({ image }) => image).toSorted()).toEqual(["app:1", "registry.local/model:1"]);
    await executor.execute(
      { kind: "StartContainer", container: "reader", sandboxID: "s0", createdID: undefined },
      context,
    );
    expect(created[0]?.mounts[0]).toEqual({
      containerPath: "/model",
      hostPath: "",
      readonly: true,
      selinuxRelabel: false,
      propagation: "PRIVATE",
      recursiveReadOnly: false,
      image: {
        image: "sha256:registry.local/model:1",
        userSpecifiedImage: "registry.local/model:1",
        runtimeHandler: "gvisor",
        annotations: { team: "ml" },
      },
      imageSubPath: "weights",
    });
    expect(events).toContainEqual(
      expect.stringContaining('pod Normal Pulling: Pulling image "registry.local/model:1"'),
    );
  });

  test("is pulled with the pod's pull secrets", async () => {
    const pod = podWith(reader);
    pod.spec.imagePullSecrets = [{ name: "key" }];
    const { executor, context, images, objects } = scripted(pod);
    const config = { auths: { "registry.local": { username: "u", password: "p" } } };
    objects.secrets.set("ns/key", {
      type: "kubernetes.io/dockerconfigjson",
      metadata: { name: "key", namespace: "ns" },
      data: { ".dockerconfigjson": Buffer.from(JSON.stringify(config)).toString("base64") },
    });
    await executor.execute({ kind: "EnsureImage", container: "reader" }, context);
    const pull = images.pulls.find(({ image }) => image === "registry.local/model:1");
    expect(pull?.auth).toMatchObject({ username: "u", password: "p" });
  });

  test("that cannot be pulled holds up the container that mounts it, and no other", async () => {
    const other: Container = { name: "other", image: "app:1" };
    const { executor, context, images, clock, events } = scripted(podWith(reader, other));
    images.present.set("app:1", info("sha256:app"));
    images.pullError = () => new AgentError("Unavailable", "no such host");
    const attempt = async () => await executor.execute({ kind: "EnsureImage", container: "reader" }, context);
    await expect(attempt()).rejects.toMatchObject({
      reason: "ErrImagePull",
      message: 'volume "model": no such host',
      retryAtMs: clock.now() + 10_000,
    });
    expect(events).toContainEqual("spec.containers{reader} Warning Failed: Error: ErrImagePull");
    expect(context.images.has("reader")).toBe(false);
    await expect(attempt()).rejects.toMatchObject({
      reason: "ImagePullBackOff",
      message: 'volume "model": Back-off pulling image "registry.local/model:1": ErrImagePull: no such host',
    });
    await executor.execute({ kind: "EnsureImage", container: "other" }, context);
    expect(context.images.get("other")).toMatchObject({ imageRef: "sha256:app" });
  });

  test("that two containers mount at once is pulled once", async () => {
    const second = { ...reader, name: "second" };
    const { executor, context, images, events } = scripted(podWith(reader, second));
    await Promise.all(
      ["reader", "second"].map(
        async (container) => await executor.execute({ kind: "EnsureImage", container }, context),
      ),
    );
    expect(images.pulls.filter(({ image }) => image === "registry.local/model:1")).toHaveLength(1);
    expect(events.filter((event) => event.includes('Pulling image "registry.local/model:1"'))).toHaveLength(1);
    for (const name of ["reader", "second"]) {
      expect(context.images.get(name)?.ofVolumes?.get("model")).toMatchObject({
        image: "sha256:registry.local/model:1",
      });
    }
  });

  test("makes no half-made container of an earlier run start: nobody has seen what is mounted in it", async () => {
    const { executor, context, started, removed } = scripted(podWith(reader, { name: "plain", image: "app:1" }));
    const start = async (container: string) =>
      await executor.execute(
        { kind: "StartContainer", container, sandboxID: "s0", createdID: `old-${container}` },
        context,
      );
    await expect(start("reader")).rejects.toMatchObject({ reason: "ContainerCreating" });
    await start("plain");
    expect(removed).toEqual(["old-reader"]);
    expect(started).toEqual(["old-plain"]);
  });

  test("is asked for in vain by policy Never", async () => {
    const pod = podWith(reader);
    pod.spec.volumes = [{ name: "model", image: { reference: "registry.local/model:1", pullPolicy: "Never" } }];
    const { executor, context } = scripted(pod);
    await expect(executor.execute({ kind: "EnsureImage", container: "reader" }, context)).rejects.toMatchObject({
      reason: "ErrImageNeverPull",
    });
  });
});
