import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { ObjectReference, PodSpec } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { Executor, type ExecutorDeps, type StepContext } from "../../../agent/pods/executor.ts";
import type { DNSConfig } from "../../../agent/pods/dns.ts";
import type { PodAction } from "../../../agent/pods/plan.ts";
import type { ContainerConfig, Mount, PodSandboxConfig } from "../../../agent/runtime/port.ts";
import { PodDirError } from "../../../agent/volumes/failures.ts";
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
  stopFailure: AgentError | undefined;
  readonly objects = new FakeObjects();
  volumeFailure: AgentError | undefined;
  deviceFailure: AgentError | undefined;
  createFailure: AgentError | undefined;
  setUpFailure: Error | undefined;
  resolvConf: () => Promise<DNSConfig> = async () =>
    await Promise.resolve({ servers: ["192.0.2.53"], searches: [], options: [] });
  /** Of sandboxes with which containers were made. */
  readonly givenDNS: (DNSConfig | undefined)[] = [];
  clusterDNS: string[] = [];
  #executor: Executor | undefined;
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
    const failing = <T>(failure: Error | undefined, value: T): T => {
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
        createContainer: async (_sandboxID: string, config: ContainerConfig, { dns }: PodSandboxConfig) => {
          this.created.push(config);
          this.givenDNS.push(dns);
          return await Promise.resolve(failing(this.createFailure, "c1"));
        },
        startContainer: nothing,
        stopPodSandbox: async () => {
          await Promise.resolve();
          if (this.stopFailure !== undefined) throw this.stopFailure;
        },
        runPodSandbox: async (config: PodSandboxConfig) => void this.sandboxes.push(await Promise.resolve(config)),
      },
      images: {
        ensureImage: async () => await Promise.resolve({ imageRef: "sha256:1", image: undefined }),
      },
      volumes: {
        setUp: async () => await Promise.resolve(failing(this.setUpFailure, undefined)),
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
        readResolvConf: async () => await this.resolvConf(),
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
    return await this.run(action, spec);
  }

  /** @returns why the step failed: the waiting reason and message; undefined: it did not */
  async run(action: PodAction, spec: Partial<PodSpec> = {}): Promise<string | undefined> {
    try {
      this.#executor ??= new Executor(this.#deps);
      await this.#executor.execute(action, this.#context(spec));
      return undefined;
    } catch (err) {
      const { reason, message } = err as { reason: string; message: string };
      return `${reason}: ${message}`;
    }
  }

  async stopSandbox(): Promise<void> {
    await new Executor(this.#deps).execute({ kind: "StopSandbox", sandboxID: "s0" }, this.#context({}));
  }

  async makeSandbox(spec: Partial<PodSpec>): Promise<void> {
    this.#executor = new Executor(this.#deps);
    await this.#executor.execute({ kind: "CreateSandbox", attempt: 0 }, this.#context(spec));
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

  test("nor does a container that the runtime refuses; one that it may still be making keeps its file", async () => {
    const spec = app({ terminationMessagePath: "/dev/termination-log" });
    const logs = async () => await readdir(join(rootDir, "pods/u1/containers/app"));
    node.createFailure = new AgentError("Internal", "no such runtime");
    for (let tries = 0; tries < 3; tries += 1) {
      expect(await node.start(spec)).toBe("CreateContainerError: no such runtime");
    }
    expect(await logs()).toEqual([]);
    node.createFailure = new AgentError("DeadlineExceeded", "no answer");
    await node.start(spec);
    expect(await logs()).toHaveLength(1);
    node.createFailure = undefined;
    await node.start(spec);
    expect(await logs()).toHaveLength(2);
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

describe("the node's resolv.conf", () => {
  const unreadable = async () =>
    await Promise.reject(new AgentError("NotFound", "open /etc/resolv.conf: no such file"));
  const dns = { servers: ["192.0.2.53"], searches: [], options: [] };

  test("is read for each sandbox, and what it said then is what its containers are made with", async () => {
    let reads = 0;
    node.resolvConf = async () => {
      reads += 1;
      return await Promise.resolve(dns);
    };
    await node.makeSandbox(app({}));
    node.resolvConf = unreadable;
    expect(await node.run({ kind: "EnsureImage", container: "app" }, app({}))).toBeUndefined();
    expect(await node.start(app({}))).toBeUndefined();
    expect([reads, node.givenDNS]).toEqual([1, [dns]]);
  });

  test("that cannot be read is told by the sandbox; containers of one that an earlier run made start all the same", async () => {
    node.resolvConf = unreadable;
    const why = "open /etc/resolv.conf: no such file";
    expect(await node.run({ kind: "CreateSandbox", attempt: 0 }, app({}))).toBe(`ContainerCreating: ${why}`);
    expect(node.events).toEqual([`Pod Warning FailedCreatePodSandBox: Failed to create pod sandbox: ${why}`]);
    expect(await node.run({ kind: "EnsureImage", container: "app" }, app({}))).toBeUndefined();
    expect(await node.start(app({}))).toBeUndefined();
  });
});

test("what keeps an image from being asked for at all is no reason of the image's", async () => {
  const spec = { ...app({}), hostname: "Not_Valid" };
  expect(await node.run({ kind: "EnsureImage", container: "app" }, spec)).toBe(
    'ContainerCreating: spec.hostname "Not_Valid" is not a DNS label',
  );
});

test("a pod without a directory is told apart from a volume that cannot be mounted", async () => {
  node.setUpFailure = new PodDirError(new Error("ENOSPC: no space left on device"));
  const why = "error making pod data directories: ENOSPC: no space left on device";
  expect(await node.run({ kind: "SetUpVolumes" }, app({}))).toBe(`ContainerCreating: ${why}`);
  node.setUpFailure = new Error("odd");
  await node.run({ kind: "SetUpVolumes" }, app({}));
  expect(node.events).toEqual([`Pod Warning Failed: ${why}`, "Pod Warning FailedMount: odd"]);
});

test("a sandbox that cannot be stopped is told of: the pod's end waits for it", async () => {
  await node.stopSandbox();
  expect(node.events).toEqual([]);
  node.stopFailure = new AgentError("Internal", "failed to destroy network for sandbox: plugin is away");
  await expect(node.stopSandbox()).rejects.toThrow("plugin is away");
  expect(node.events).toEqual([
    'Pod Warning FailedKillPod: error killing pod: failed to "KillPodSandbox" for "u1" with KillPodSandboxError: "failed to destroy network for sandbox: plugin is away"',
  ]);
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
