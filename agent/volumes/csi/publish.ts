import { mkdir, readlink } from "node:fs/promises";
import { join } from "node:path";
import type { ApiClient } from "../../kube/port.ts";
import type { CSIDriver } from "../../kube/types.ts";
import type { Clock } from "../../lib/clock.ts";
import { ignoreErrno } from "../../lib/errno.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { VolumeContext } from "../kind.ts";
import { type Device, type Devices } from "./devices.ts";
import { attachmentName, blockPathsOf, deviceDirOf, stagingPathOf, targetPathOf } from "./paths.ts";
import { type CSIDriverClient, type CSIDrivers, type CSIMap, isFinalError, type NodeCapability } from "./port.ts";
import { publishExtras, readSecret, secretsOfPods, secretsOfVolumes } from "./requests.ts";
import { contextOption } from "./selinux.ts";
import { removePublished, removeTarget } from "./tear-down.ts";
import { readVolumeData, type TargetData, writeVolumeData } from "./volume-data.ts";
import { type CSIVolume, volumeCapability } from "./volume.ts";
import { inStep } from "../step-error.ts";

export interface PublishDeps {
  /** Resolved. */
  rootDir: string;
  nodeName: string;
  client: ApiClient | undefined;
  drivers: CSIDrivers;
  devices: Devices;
  clock: Clock;
  log: Logger;
}

/** A volume on its way to a pod. */
export interface Publishing {
  volume: CSIVolume;
  context: VolumeContext;
  object: CSIDriver | undefined;
  publishContext: CSIMap;
  /** The SELinux label that all of it is mounted with. */
  label: string | undefined;
  /** The pod has it, and is told of new tokens, or of whatever else its driver looks at. */
  isRepeated: boolean;
  /** The target was on the disk when this agent came: what a final error means is not known then. */
  isFromBefore: boolean;
}

/** What came of it. */
export interface Published {
  driver: CSIDriverClient;
  capabilities: ReadonlySet<NodeCapability>;
  /** "": not staged. */
  stagingPath: string;
  /** Unix ms from which on a token should be replaced. */
  refreshAtMs: number | undefined;
}

/** Where the driver is to put a pod's volume, or its device. */
export function publishPathOf(rootDir: string, { isBlock, specName, pod, dir }: VolumeContext): string {
  if (!isBlock) return targetPathOf(dir);
  return join(blockPathsOf(rootDir, specName).publishDir, pod.metadata.uid ?? "");
}

/** Stages a volume if its driver does that, once for all pods of the node, and publishes it for one of them. Idempotent. */
export async function publishVolume(publishing: Publishing, deps: PublishDeps): Promise<Published> {
  const { volume, context, isRepeated } = publishing;
  const { isBlock, signal } = context;
  const { driver: name } = volume;
  const asClient = async () => {
    const driver = deps.drivers.client(name);
    return { driver, capabilities: await driver.nodeGetCapabilities() };
  };
  // Whoever is not there yet is missed at the first thing that it is to do.
  const { driver, capabilities } =
    volume.isEphemeral || isRepeated
      ? await asClient()
      : await inStep(isBlock ? "SetUpDevice" : "MountDevice", asClient);
  signal.throwIfAborted();
  const isStaged = !volume.isEphemeral && capabilities.has("STAGE_UNSTAGE_VOLUME");
  const device = deviceOf(volume, context, deps.rootDir);
  if (!isRepeated) {
    if (volume.isEphemeral) await writeTarget(publishing, deps);
    else {
      const prepare = async () => {
        signal.throwIfAborted();
        if (isStaged) await stage(device, publishing, { driver, capabilities }, deps);
        signal.throwIfAborted();
        await writeTarget(publishing, deps); // makes it a user of the device, so in the same breath
      };
      await deps.devices.locked(device, prepare, signal);
    }
  }
  const stagingPath = isStaged || isBlock ? device.stagingPath : "";
  const publish = async () => await publishTo({ ...publishing, stagingPath }, { driver, capabilities }, deps);
  const refreshAtMs = await (isBlock ? inStep("MapPodDevice", publish) : publish());
  return { driver, capabilities, stagingPath: isStaged ? device.stagingPath : "", refreshAtMs };
}

type Asked = Pick<Published, "driver" | "capabilities">;

async function stage(device: Device, publishing: Publishing, asked: Asked, deps: PublishDeps): Promise<void> {
  const { volume, context, publishContext, label } = publishing;
  const { signal, isBlock } = context;
  await inStep(isBlock ? "SetUpDevice" : "MountDevice", async () => {
    const secrets = await readSecret(secretsOfVolumes(deps.client), volume.stageSecret, "NodeStageSecretRef", signal);
    const capability = capabilityFor(publishing, asked.capabilities);
    const call = async () =>
      await asked.driver.nodeStageVolume({
        volumeID: volume.handle,
        publishContext,
        stagingTargetPath: device.stagingPath,
        capability,
        secrets,
        volumeContext: volume.attributes,
      });
    await deps.devices.stage(device, label, call, signal);
  });
}

async function publishTo(
  publishing: Publishing & { stagingPath: string },
  { driver, capabilities }: Asked,
  deps: PublishDeps,
): Promise<number | undefined> {
  const { volume, context, object, publishContext, stagingPath, isRepeated, isFromBefore } = publishing;
  const { pod, signal, isBlock } = context;
  const read = volume.isEphemeral ? secretsOfPods(context.deps.objects) : secretsOfVolumes(deps.client);
  const secret = await readSecret(read, volume.publishSecret, "NodePublishSecretRef", signal);
  // A block device has no files in which a driver could keep tokens.
  const asked = isBlock && object !== undefined ? { ...object, spec: { ...object.spec, tokenRequests: [] } } : object;
  const extras = await publishExtras(pod, volume, asked, context.deps.tokens, signal);
  signal.throwIfAborted();
  try {
    await driver.nodePublishVolume({
      volumeID: volume.handle,
      publishContext,
      stagingTargetPath: stagingPath,
      targetPath: publishPathOf(deps.rootDir, context),
      capability: capabilityFor(publishing, capabilities),
      isReadOnly: volume.isReadOnly,
      secrets: { ...secret, ...extras.secrets },
      volumeContext: { ...volume.attributes, ...extras.volumeContext },
    });
  } catch (err) {
    // Nothing is in place: nothing is left to take away. Otherwise it stays on the disk, for the next try or for tear-down.
    if (isFinalError(err) && !isRepeated && !isFromBefore) {
      await undoTarget(context, deps.rootDir).catch((undoErr: unknown) => {
        deps.log.debug(
          { volume: context.specName, err: messageOf(undoErr) },
          "what was made for a CSI volume stays for tear-down",
        );
      });
    }
    throw err;
  }
  return extras.refreshAtMs;
}

function capabilityFor({ volume, context, label }: Publishing, capabilities: ReadonlySet<NodeCapability>) {
  const mountFlags = label === undefined ? volume.mountOptions : [...volume.mountOptions, contextOption(label)];
  const { fsGroup } = context.pod.spec.securityContext ?? {};
  return volumeCapability(volume, capabilities, { isBlock: context.isBlock, fsGroup, mountFlags });
}

/** The device of a volume. */
export function deviceOf(
  { driver, handle }: Pick<CSIVolume, "driver" | "handle">,
  { isBlock, specName }: Pick<VolumeContext, "isBlock" | "specName">,
  rootDir: string,
): Device {
  if (isBlock) {
    const { dataDir, stagingPath } = blockPathsOf(rootDir, specName);
    return { driver, handle, blockName: specName, dataDir, stagingPath };
  }
  const dataDir = deviceDirOf(rootDir, driver, handle);
  return { driver, handle, blockName: undefined, dataDir, stagingPath: stagingPathOf(dataDir) };
}

async function writeTarget({ volume, context, label }: Publishing, { rootDir, nodeName }: PublishDeps): Promise<void> {
  const { dir, isBlock, specName } = context;
  const { driver, handle, isEphemeral } = volume;
  const data: TargetData = {
    specVolID: specName,
    volumeHandle: handle,
    driverName: driver,
    nodeName,
    attachmentID: attachmentName(handle, driver, nodeName),
    volumeLifecycleMode: isEphemeral ? "Ephemeral" : "Persistent",
    ...(label === undefined ? {} : { seLinuxMountContext: label }),
  };
  if (isBlock) {
    const { dataDir, publishDir } = blockPathsOf(rootDir, specName);
    await mkdir(dataDir, { recursive: true, mode: 0o750 });
    await mkdir(publishDir, { recursive: true, mode: 0o750 });
    await writeVolumeData(dataDir, data);
    return;
  }
  const before = await readVolumeData(dir).catch(() => undefined);
  if (before !== undefined && (before.driverName !== driver || before.volumeHandle !== handle)) {
    // Written over, nobody would know any more what to take away.
    const which = `volume ${before.volumeHandle} of driver ${before.driverName}`;
    const why = `the pod still has ${which}, which was PersistentVolume ${specName} before: delete the pod`;
    throw new AgentError("Unavailable", why);
  }
  await mkdir(dir, { recursive: true, mode: 0o750 });
  await writeVolumeData(dir, data);
}

/** True if an earlier agent has begun to give the pod this volume. */
export async function isBegun({ dir, isBlock }: VolumeContext): Promise<boolean> {
  if (isBlock) return (await readlink(dir).catch(ignoreErrno("ENOENT"))) !== undefined;
  return (await readVolumeData(dir).catch(() => "unreadable")) !== undefined;
}

async function undoTarget(context: VolumeContext, rootDir: string): Promise<void> {
  const { isBlock, specName, pod, dir } = context;
  if (isBlock) await removePublished(blockPathsOf(rootDir, specName).publishDir, pod.metadata.uid ?? "");
  else await removeTarget(dir);
}
