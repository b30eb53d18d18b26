import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { createApiClient, type KubeClient } from "../../../agent/kube/client.ts";
import { createInformerFactory } from "../../../agent/kube/informer.ts";
import { loadKubeconfig } from "../../../agent/kube/kubeconfig.ts";
import { csiDrivers, nodes } from "../../../agent/kube/resources.ts";
import { systemClock } from "../../../agent/lib/clock.ts";
import { messageOf } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { createPluginManager } from "../../../agent/plugins/manager.ts";
import { createClaimResolver } from "../../../agent/volumes/claims.ts";
import { csiClientOpener } from "../../../agent/volumes/csi/client.ts";
import { csiDriverObjects } from "../../../agent/volumes/csi/driver-objects.ts";
import { createCSIDrivers, type OwnedCSIDrivers } from "../../../agent/volumes/csi/drivers.ts";
import { type CSIVolumes, createCSIVolumes } from "../../../agent/volumes/csi/kind.ts";
import type { CSIDriverClient, CSIDrivers } from "../../../agent/volumes/csi/port.ts";
import { createPodVolumes, type VolumeManager } from "../../../agent/volumes/manager.ts";
import { createObjectSource, type OwnedObjectSource } from "../../../agent/volumes/object-source.ts";

const clock = systemClock;
const log = silentLogger;

/** Where an agent dies: at the n-th call of a method, before it is sent or after it was answered. */
export interface DeathAt {
  method: string;
  when: "before" | "after";
  /** From 1; default 1. */
  count?: number;
}

/** As much of an agent as mounts CSI volumes: on the real API client, with real drivers and mounts, and no pods. */
export class VolumeAgent {
  readonly drivers: OwnedCSIDrivers;
  readonly csi: CSIVolumes;
  readonly manager: VolumeManager;
  /** Pods have to be registered with it, as their workers do. */
  readonly objects: OwnedObjectSource;
  /** `REASON MESSAGE` of each event about a pod; those about claims have the claim's name before it. */
  readonly events: string[] = [];
  /** UIDs of pods that were told to try again. */
  readonly wakes: string[] = [];
  /** Resolves when it died. */
  readonly died: Promise<void>;
  readonly #stop = new AbortController();
  readonly #client: KubeClient;
  readonly #running: Promise<unknown>;

  private constructor(client: KubeClient, rootDir: string, nodeName: string, deathAt: DeathAt | undefined) {
    const { signal } = this.#stop;
    this.#client = client;
    const startInformer = createInformerFactory({ client, clock, log });
    const nodeInformer = startInformer(nodes, { fieldSelector: `metadata.name=${nodeName}` }, signal);
    const driverInformer = startInformer(csiDrivers, {}, signal);
    this.drivers = createCSIDrivers({ csiNode: undefined, log, open: csiClientOpener(clock, () => {}) });
    const dir = join(rootDir, "plugins_registry");
    const plugins = createPluginManager({ dir, handlers: { CSIPlugin: this.drivers.handler }, clock, log });
    const { promise, resolve } = Promise.withResolvers<void>();
    this.died = promise;
    const die = () => {
      resolve();
      this.#stop.abort();
    };
    this.csi = createCSIVolumes({
      rootDir,
      nodeName,
      client,
      drivers: deathAt === undefined ? this.drivers : mortal(this.drivers, deathAt, die),
      objects: csiDriverObjects(driverInformer.store),
      ownNode: nodeInformer.store,
      selinuxEnabled: false,
      event: (about, _type, reason, message) => this.events.push(`${about.name}: ${reason} ${message}`),
      clock,
      log,
    });
    // What the node status does in a whole agent.
    let reporting = Promise.resolve();
    const report = () => {
      reporting = reporting.then(async () => {
        const volumesInUse = this.csi.volumesInUse();
        if (volumesInUse === undefined || signal.aborted) return;
        const patch = { status: { volumesInUse } };
        await client
          .patch(nodes, { name: nodeName }, patch, { type: "merge", subresource: "status", signal })
          .catch(() => {});
      });
    };
    this.csi.subscribeInUse(report);
    this.objects = createObjectSource({ client, startInformer, clock, log, strategy: "Watch" });
    this.manager = createPodVolumes({
      rootDir,
      client,
      objects: this.objects,
      clock,
      log,
      nodeAllocatable: () => ({ memory: "1Gi" }),
      selinuxEnabled: false,
      kinds: [this.csi.kind],
      claims: createClaimResolver({ client, matchesNode: () => true }),
      onEvent: (_pod, _type, reason, message) => this.events.push(`${reason} ${message}`),
    });
    this.manager.onChange((podUID) => this.wakes.push(podUID));
    this.#running = Promise.all([
      nodeInformer.stopped,
      driverInformer.stopped,
      plugins.run(signal),
      deathAt === undefined ? this.csi.run(signal) : undefined, // what hangs in a dead agent never ends
    ]);
    if (deathAt !== undefined) this.csi.run(signal).catch((err: unknown) => this.events.push(messageOf(err)));
  }

  static async start(
    kubeconfig: string,
    rootDir: string,
    { nodeName = "n1", deathAt }: { nodeName?: string; deathAt?: DeathAt } = {},
  ): Promise<VolumeAgent> {
    for (const name of ["plugins", "plugins_registry", "pods"]) await mkdir(join(rootDir, name), { recursive: true });
    const access = await loadKubeconfig(kubeconfig);
    const client = createApiClient({ access, userAgent: "kubelet/v1.36.0", qps: -1, burst: 100, log, clock });
    return new VolumeAgent(client, rootDir, nodeName, deathAt);
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    this.manager.close();
    await this.objects.close();
    await this.#running;
    this.drivers.close();
    await this.#client[Symbol.asyncDispose]();
  }
}

/** Drivers of an agent that dies at one of its calls: nothing that it asks from then on is sent or answered. */
function mortal(drivers: CSIDrivers, { method, when, count = 1 }: DeathAt, die: () => void): CSIDrivers {
  let isDead = false;
  let seen = 0;
  const never = async () => await new Promise<never>(() => {});
  const guard = (client: CSIDriverClient): CSIDriverClient =>
    new Proxy(client, {
      get(target, name) {
        const value: unknown = Reflect.get(target, name);
        if (typeof value !== "function") return value;
        return async (...args: unknown[]): Promise<unknown> => {
          if (isDead) return await never();
          if (name === method) seen += 1;
          const isHere = name === method && seen === count;
          if (!isHere) return await (Reflect.apply(value, target, args) as Promise<unknown>);
          if (when === "after") await (Reflect.apply(value, target, args) as Promise<unknown>);
          isDead = true;
          die();
          return await never();
        };
      },
    });
  return { client: (driver) => guard(drivers.client(driver)), subscribe: (listener) => drivers.subscribe(listener) };
}
