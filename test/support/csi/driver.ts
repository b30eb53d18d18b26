import { appendFile, mkdir, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type handleUnaryCall, Server, ServerCredentials, status } from "@grpc/grpc-js";
import { messageOf } from "../../../agent/lib/errors.ts";
import { statusNames } from "../../../agent/lib/grpc/channel.ts";
import { loadProto, type ProtoFile } from "../../../agent/lib/grpc/proto.ts";
import {
  type CSICallRecord,
  type CSIFault,
  driverSocket,
  journalPath,
  readConfig,
  readFaults,
  registrationSocket,
} from "./config.ts";
import { openVolumes, settingsOf } from "./volumes.ts";

const hangLookMs = 20;

interface VolumeRequest {
  volume_id: string;
  target_path: string;
  staging_target_path: string;
  volume_path: string;
  volume_context: Record<string, string>;
  publish_context: Record<string, string>;
  readonly: boolean;
  capacity_range: { required_bytes: string } | null;
  volume_capability: {
    mount?: { fs_type: string; mount_flags: string[]; volume_mount_group: string } | null;
    block?: object | null;
  } | null;
}

type Method = (request: VolumeRequest) => Promise<object>;

/** A refusal with a gRPC status. */
class Refusal extends Error {
  readonly code: status;

  constructor(code: status, message: string) {
    super(message);
    this.code = code;
  }
}

/** Serves a CSI driver's node service and its registration as `DIR/config.json` says. @returns ends both */
export async function serveCSIDriver(dir: string): Promise<() => Promise<void>> {
  const config = await readConfig(dir);
  const volumes = openVolumes(dir);
  const can = async (capability: string) => (await readConfig(dir)).capabilities.includes(capability);
  const need = async (capability: string) => {
    if (!(await can(capability))) throw new Refusal(status.UNIMPLEMENTED, `this driver has no ${capability}`);
  };
  const mountOf = ({ volume_id, volume_context, volume_capability }: VolumeRequest) => ({
    volumeID: volume_id,
    settings: settingsOf(volume_context),
    mountFlags: volume_capability?.mount?.mount_flags ?? [],
    group: volume_capability?.mount?.volume_mount_group ?? "",
  });
  const isBlock = ({ volume_capability }: VolumeRequest) => (volume_capability?.block ?? null) !== null;

  const node: Record<string, Method> = {
    NodeGetInfo: async () => {
      const { nodeID, maxVolumesPerNode, topology } = await readConfig(dir);
      const accessible_topology = Object.keys(topology).length === 0 ? null : { segments: topology };
      return { node_id: nodeID, max_volumes_per_node: String(maxVolumesPerNode), accessible_topology };
    },
    NodeGetCapabilities: async () => {
      const { capabilities } = await readConfig(dir);
      return { capabilities: capabilities.map((type) => ({ rpc: { type } })) };
    },
    NodeStageVolume: async (request) => {
      await need("STAGE_UNSTAGE_VOLUME");
      if (isBlock(request)) return {};
      await volumes.mount({ ...mountOf(request), target: request.staging_target_path, isReadOnly: false });
      return {};
    },
    NodeUnstageVolume: async ({ volume_id, staging_target_path }) => {
      await need("STAGE_UNSTAGE_VOLUME");
      await volumes.unmount(volume_id, staging_target_path);
      return {};
    },
    NodePublishVolume: async (request) => {
      const { volume_id, target_path: target, staging_target_path: staging, readonly: isReadOnly } = request;
      if (isBlock(request)) {
        await volumes.publishDevice(volume_id, settingsOf(request.volume_context), target);
      } else if (await can("STAGE_UNSTAGE_VOLUME")) {
        // A volume inside a pod is not staged, whatever the driver can do.
        if (staging === "") await volumes.mount({ ...mountOf(request), target, isReadOnly });
        else await volumes.bind(staging, target, isReadOnly);
      } else {
        await volumes.mount({ ...mountOf(request), target, isReadOnly });
      }
      return {};
    },
    NodeUnpublishVolume: async ({ volume_id, target_path }) => {
      await volumes.unmount(volume_id, target_path);
      return {};
    },
    NodeGetVolumeStats: async ({ volume_id, volume_path }) => {
      await need("GET_VOLUME_STATS");
      if (!(await volumes.isThere(volume_id))) throw new Refusal(status.NOT_FOUND, `no volume ${volume_id}`);
      const { condition } = await readConfig(dir);
      return { usage: await volumes.stats(volume_path), volume_condition: condition ?? null };
    },
    NodeExpandVolume: async ({ volume_id, capacity_range }) => {
      await need("EXPAND_VOLUME");
      if (!(await volumes.isThere(volume_id))) throw new Refusal(status.NOT_FOUND, `no volume ${volume_id}`);
      const size = await volumes.expand(volume_id, Number(capacity_range?.required_bytes ?? 0));
      return { capacity_bytes: String(size) };
    },
  };
  const registration: Record<string, Method> = {
    GetInfo: async () => {
      const { name, versions, pluginType } = await readConfig(dir);
      return { type: pluginType, name, endpoint: driverSocket(config), supported_versions: versions };
    },
    NotifyRegistrationStatus: async () => ({}),
  };

  const watched = watchCalls(dir);
  const servers = [
    await listen(driverSocket(config), { file: "csi.v1.proto", service: "csi.v1.Node", methods: watched(node) }),
    await listen(registrationSocket(config), {
      file: "pluginregistration.v1.proto",
      service: "pluginregistration.Registration",
      methods: watched(registration),
    }),
  ];
  return async () => {
    for (const server of servers) server.forceShutdown();
    // As real registrars do on SIGTERM: what is gone is no longer registered.
    await rm(registrationSocket(config), { force: true });
    await rm(driverSocket(config), { force: true });
  };
}

/** Writes down each call, and makes those fail that a test wants to. */
function watchCalls(dir: string): (methods: Record<string, Method>) => Record<string, Method> {
  let calls = 0;
  const used = new Map<string, number>();
  const write = async (record: CSICallRecord) => await appendFile(journalPath(dir), `${JSON.stringify(record)}\n`);
  const faultOf = async (method: string): Promise<CSIFault | undefined> => {
    const fault = (await readFaults(dir))[method];
    if (fault?.times === undefined) return fault;
    const key = JSON.stringify([method, fault]);
    const count = (used.get(key) ?? 0) + 1;
    used.set(key, count);
    return count > fault.times ? undefined : fault;
  };
  const obey = async (method: string, fault: CSIFault) => {
    const isThere = async () => (await readFaults(dir))[method]?.id === fault.id;
    while (fault.hangs === true && (await isThere())) await sleep(hangLookMs);
    if (fault.code !== undefined) throw new Refusal(statusOf(fault.code), fault.message ?? "as the test wants it");
  };
  const watched =
    (method: string, run: Method): Method =>
    async (request) => {
      calls += 1;
      const record = { call: calls, pid: process.pid, method, request: { ...request } };
      await write(record);
      try {
        const fault = await faultOf(method);
        if (fault !== undefined && fault.isAfterwards !== true) await obey(method, fault);
        const answer = await run(request);
        if (fault?.isAfterwards === true) await obey(method, fault);
        await write({ ...record, code: "OK" });
        return answer;
      } catch (err) {
        await write({ ...record, code: statusNames[codeOf(err)] ?? String(codeOf(err)) });
        throw err;
      }
    };
  return (methods) =>
    Object.fromEntries(Object.entries(methods).map(([method, run]) => [method, watched(method, run)]));
}

async function listen(
  socket: string,
  { file, service, methods }: { file: ProtoFile; service: string; methods: Record<string, Method> },
): Promise<Server> {
  const proto = await loadProto(file);
  const server = new Server();
  for (const [name, run] of Object.entries(methods)) {
    const { path, responseSerialize, requestDeserialize } = proto.method(service, name);
    const handler: handleUnaryCall<object, object> = ({ request }, answer) => {
      run(request as VolumeRequest).then(
        (response) => answer(null, response),
        (err: unknown) => answer({ code: codeOf(err), details: messageOf(err) }),
      );
    };
    server.register(path, handler, responseSerialize, requestDeserialize, "unary");
  }
  await mkdir(dirname(socket), { recursive: true });
  await rm(socket, { force: true });
  await new Promise<void>((resolve, reject) => {
    server.bindAsync(`unix://${socket}`, ServerCredentials.createInsecure(), (err) => {
      if (err === null) resolve();
      else reject(err);
    });
  });
  return server;
}

function codeOf(err: unknown): status {
  return err instanceof Refusal ? err.code : status.INTERNAL;
}

/** `InvalidArgument` → status.INVALID_ARGUMENT */
function statusOf(name: string): status {
  const key = name === "Canceled" ? "CANCELLED" : name.replaceAll(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase();
  if (!isStatus(key)) throw new Error(`there is no gRPC status ${name}`);
  return status[key];
}

function isStatus(key: string): key is keyof typeof status {
  return Object.hasOwn(status, key);
}
