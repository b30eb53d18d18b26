import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { ObjectReference, PodSpec } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { Executor, type ExecutorDeps, type StepContext } from "../../../agent/pods/executor.ts";
import type { ContainerConfig, Mount, PodSandboxConfig } from "../../../agent/runtime/port.ts";
import { FakeObjects, makeTempDir } from "../volumes/support.ts";
import { image, podOf, sandboxOf, snapshot } from "./support.ts";

const ownID = { hostID: 65_536, containerID: 0, length: 65_536 };
const ownIDs = { uids: [ownID], gids: [ownID] };

/** A node on which only that is real which makes the configuration of sandboxes and containers. */
class ConfigNode {
  readonly events: string[] = [];
  readonly created: ContainerConfig[] = [];
  readonly sandboxes: PodSandboxConfig[] = [];
  hasUserNamespaces = true;
  readonly objects = new FakeObjects();
  volumeFailure: AgentError | undefined;
  deviceFailure: AgentError | undefined;
  clusterDNS: string[] = [];
  readonly #rootDir: string;

  constructor(rootDir: string) {
    this.#rootDir = rootDir;
  }

  get #deps(): ExecutorDeps {
    const nothing = async () => await Promise.resolve();
    const mount: Mount = {
      hostPath: "/volume",
      containerPath: "/data",
      readonly: false,
      selinuxRelabel: false,
      propagation: "PRIVATE",
      recursiveReadOnly: false,
    };
    const failing = <T>(failure: AgentError | undefined, value: T): T => {
      if (failure !== undefined) throw failure;
      return value;
    };
    const deps = {
      log: silentLogger,
      objects: this.objects,
      services: { hasSynced: true, get: () => undefined, byIndex: () => [] },
      runtimeClasses: { get: () => undefined },
      recorder: {
        event: (about: ObjectReference, type: string, reason: string, message: string) =>
          void this.events.push(`${about.fieldPath ?? about.kind} ${type} ${reason}: ${message}`),
      },
      runtime: {
        createContainer: async (_sandboxID: string, config: ContainerConfig) => {
          this.created.push(config);
          return await Promise.resolve("c1");
        },
        startContainer: nothing,
        runPodSandbox: async (config: PodSandboxConfig) => void this.sandboxes.push(await Promise.resolve(config)),
      },
      volumes: {
        mounts: async () => await Promise.resolve(failing(this.volumeFailure, [mount])),
        devices: () => failing(this.deviceFailure, [{ hostPath: "/d", containerPath: "/dev/x", permissions: "mrw" }]),
        supplementalGroups: () => [],
      },
      cgroups: { parentFor: () => "/kubepods", ensure: nothing },
      resizes: { starting: nothing, cgroupMade: () => {} },
      node: {
        nodeName: "n1",
        hostIPs: () => ["192.0.2.1"],
        allocatable: () => ({}),
        hasRecursiveReadOnly: () => false,
        hasUserNamespaces: () => this.hasUserNamespaces,
      },
      userNamespaces: { mappings: async () => await Promise.resolve(ownIDs) },
      settings: {
        rootDir: this.#rootDir,
        podLogsDir: join(this.#rootDir, "logs"),
        containerLogsDir: join(this.#rootDir, "links"),
        clusterDNS: this.clusterDNS,
        clusterDomain: "cluster.local",
        readResolvConf: async () => await Promise.resolve({ servers: ["192.0.2.53"], searches: [], options: [] }),
        seccompDefault: false,
        selinuxEnabled: false,
        resources: { hugePageSizes: [], memoryCapacityBytes: 1 << 30, cgroupVersion: 2 },
      },
    };
    return deps as unknown as ExecutorDeps;
  }

  #context(spec: Partial<PodSpec>): StepContext {
    const { signal } = new AbortController();
    const pod = podOf({ enableServiceLinks: true, ...spec });
    const images = new Map([["app", image]]);
    const podIPs = ["10.0.0.2"];
    return { pod, observed: snapshot(), podIPs, images, maskedPaths: [], signal, hookSignal: signal };
  }

  /** @returns why the container could not start: the waiting reason and message; undefined: it started */
  async start(spec: Partial<PodSpec> = {}): Promise<string | undefined> {
    const action = {
      kind: "StartContainer",
      container: "app",
      sandboxID: sandboxOf().id,
      createdID: undefined,
    } as const;
    try {
      await new Executor(this.#deps).execute(action, this.#context(spec));
      return undefined;
    } catch (err) {
      const { reason, message } = err as { reason: string; message: string };
      return `${reason}: ${message}`;
    }
  }

  async makeSandbox(spec: Partial<PodSpec>): Promise<void> {
    await new Executor(this.#deps).execute({ kind: "CreateSandbox", attempt: 0 }, this.#context(spec));
  }
}

let rootDir: string;
let cleanUp: () => Promise<void>;
let node: ConfigNode;

beforeEach(async () => {
  ({ dir: rootDir, cleanUp } = await makeTempDir());
  await mkdir(join(rootDir, "pods/u1"), { recursive: true });
  node = new ConfigNode(rootDir);
});
afterEach(() => cleanUp());

const app = (more: object): Partial<PodSpec> => ({ containers: [{ name: "app", image: "image:1", ...more }] });
const configError = (why: string) => `CreateContainerConfigError: ${why}`;

test("a container gets its volumes, the hosts file, the file for its last words, and its devices", async () => {
  expect(await node.start(app({ terminationMessagePath: "/dev/termination-log" }))).toBeUndefined();
  const [config] = node.created;
  expect(config?.mounts.map(({ containerPath }) => containerPath)).toEqual([
    "/data",
    "/etc/hosts",
    "/dev/termination-log",
  ]);
  expect(config?.devices).toEqual([{ hostPath: "/d", containerPath: "/dev/x", permissions: "mrw" }]);
  expect(await readdir(join(rootDir, "logs/ns_web_u1"))).toEqual(["app"]);
});

describe("what is wrong with a container's configuration is told in one order, once for each try", () => {
  const badHostname = { hostname: "Not_Valid" };
  const badDevice = new AgentError("Invalid", "no such device");
  const badEnv = { envFrom: [{ configMapRef: { name: "nope" } }] };
  const badVolume = new AgentError("Invalid", "no such volume");
  const badUser = { securityContext: { runAsNonRoot: true, runAsUser: 0 } };
  const cases = [
    {
      first: "hostname",
      spec: badHostname,
      device: badDevice,
      volume: badVolume,
      want: 'spec.hostname "Not_Valid" is not a DNS label',
    },
    { first: "device", spec: {}, device: badDevice, volume: badVolume, want: "no such device" },
    { first: "environment", spec: {}, device: undefined, volume: badVolume, want: 'configmap "nope" not found' },
  ];
  test.each(cases)("$first first", async ({ spec, device, volume, want }) => {
    node.deviceFailure = device;
    node.volumeFailure = volume;
    for (let tries = 1; tries <= 2; tries += 1) {
      expect(await node.start({ ...app({ ...badEnv, ...badUser }), ...spec })).toBe(configError(want));
      expect(node.events).toEqual(
        Array.from({ length: tries }, () => `spec.containers{app} Warning Failed: Error: ${want}`),
      );
    }
    expect(node.created).toEqual([]);
  });

  test("then volumes, then the user", async () => {
    node.volumeFailure = badVolume;
    expect(await node.start(app(badUser))).toBe(configError("no such volume"));
    node.volumeFailure = undefined;
    expect(await node.start(app(badUser))).toMatch(
      /^CreateContainerConfigError: container's runAsUser breaks non-root/,
    );
  });

  test("and none of it leaves a termination log behind", async () => {
    await node.start(app({ ...badUser, terminationMessagePath: "/dev/termination-log" }));
    expect(await readdir(join(rootDir, "pods/u1"))).toEqual(["etc-hosts"]);
  });

  test("a hostname that cannot be concerns containers on the host's network, too", async () => {
    const spec = { ...app({}), hostNetwork: true, subdomain: "Not_Valid" };
    expect(await node.start(spec)).toBe(configError('spec.subdomain "Not_Valid" is not a DNS label'));
    await node.makeSandbox(spec);
  });
});

test("a container is stopped by the signal that it names", async () => {
  expect(await node.start(app({ lifecycle: { stopSignal: "SIGUSR1" } }))).toBeUndefined();
  expect(await node.start(app({}))).toBeUndefined();
  expect(node.created.map(({ stopSignal }) => stopSignal)).toEqual(["SIGUSR1", undefined]);
});

describe("a pod with a user namespace of its own", () => {
  const spec = { ...app({ terminationMessagePath: "/dev/termination-log" }), hostUsers: false };

  test("has one in its sandbox and its containers, and sees the node's files through it", async () => {
    await node.makeSandbox(spec);
    expect(node.sandboxes[0]?.securityContext.namespaceOptions.userns).toEqual({ mode: "POD", ...ownIDs });
    expect(await node.start(spec)).toBeUndefined();
    const [config] = node.created;
    expect(config?.securityContext.namespaceOptions.userns).toEqual({ mode: "POD", ...ownIDs });
    const ofTheNode = config?.mounts.filter(({ containerPath }) => containerPath !== "/data");
    expect(ofTheNode?.map(({ uidMappings, gidMappings }) => ({ uidMappings, gidMappings }))).toEqual(
      ["/etc/hosts", "/dev/termination-log"].map(() => ({ uidMappings: [ownID], gidMappings: [ownID] })),
    );
  });

  test("does not run in the node's where the runtime knows of none", async () => {
    node.hasUserNamespaces = false;
    const why = "spec.hostUsers is false, but the runtime's default handler does not support user namespaces";
    await expect(node.makeSandbox(spec)).rejects.toThrow(why);
    expect(node.events).toContain(`Pod Warning FailedCreatePodSandBox: Failed to create pod sandbox: ${why}`);
    expect(await node.start(spec)).toBe(configError(why));
    expect([node.sandboxes, node.created]).toEqual([[], []]);
  });

  test("is asked for by false alone", async () => {
    node.hasUserNamespaces = false;
    for (const more of [{}, { hostUsers: true }]) {
      expect(await node.start({ ...app({}), ...more })).toBeUndefined();
    }
    expect(node.created.map(({ securityContext }) => securityContext.namespaceOptions.userns)).toEqual([
      undefined,
      undefined,
    ]);
  });
});

describe("a new sandbox", () => {
  test("says on pod and node that there is no cluster DNS", async () => {
    await node.makeSandbox({});
    const why =
      'Warning MissingClusterDNS: kubelet does not have ClusterDNS IP configured and cannot create Pod using "ClusterFirst" policy. Falling back to "Default" policy.';
    expect(node.events).toEqual([`Pod ${why}`, `Node ${why}`]);
  });

  test("says on the pod alone what was cut of its own settings; containers do not repeat it", async () => {
    node.clusterDNS = ["10.96.0.10"];
    const spec = { dnsConfig: { nameservers: ["192.0.2.1", "192.0.2.2", "192.0.2.3"] } };
    await node.makeSandbox(spec);
    await node.start(spec);
    expect(node.events.filter((event) => event.includes("DNSConfigForming"))).toEqual([
      "Pod Warning DNSConfigForming: Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 10.96.0.10 192.0.2.1 192.0.2.2",
    ]);
  });
});
