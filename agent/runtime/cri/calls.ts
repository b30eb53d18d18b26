import { AgentError, hasCode } from "../../lib/errors.ts";
import type { CRIChannel } from "./client.ts";
import type { ProtoPackage } from "../../lib/grpc/proto.ts";
import type { WireContainer, WireContainerStatus, WirePodSandbox, WirePodSandboxStatus } from "./wire.ts";

export const runtimeService = "runtime.v1.RuntimeService";

/** The runtime service's calls that more than one part makes; answers are still in the wire's shapes. */
export interface RuntimeCalls {
  /** One unary call. `timeoutMs`: the request timeout unless given; Infinity means none. */
  call<Response extends object>(
    method: string,
    request: object,
    what: string,
    timeoutMs?: number,
    signal?: AbortSignal,
  ): Promise<Response>;
  listSandboxes(filter: object): Promise<WirePodSandbox[]>;
  listContainers(filter: object): Promise<WireContainer[]>;
  /** Rejects with NotFound. */
  sandboxStatus(sandboxID: string): Promise<WirePodSandboxStatus>;
  /** Rejects with NotFound. */
  containerStatus(containerID: string): Promise<WireContainerStatus>;
}

export function createRuntimeCalls(channel: CRIChannel, proto: ProtoPackage, requestTimeoutMs: number): RuntimeCalls {
  const call = async <Response extends object>(
    method: string,
    request: object,
    what: string,
    timeoutMs = requestTimeoutMs,
    signal?: AbortSignal,
  ) => {
    const settings = { timeoutMs, what, ...(signal === undefined ? {} : { signal }) };
    return await channel.call<Response>(proto, runtimeService, method, request, settings);
  };
  const found = <T>(status: T | null, what: string): T => {
    if (status === null) throw new AgentError("NotFound", `${what}: the runtime answered nothing`);
    return status;
  };
  return {
    call,
    listSandboxes: async (filter) =>
      (await call<{ items: WirePodSandbox[] }>("ListPodSandbox", { filter }, "list sandboxes")).items,
    listContainers: async (filter) =>
      (await call<{ containers: WireContainer[] }>("ListContainers", { filter }, "list containers")).containers,
    sandboxStatus: async (sandboxID) => {
      const what = `status of sandbox ${sandboxID}`;
      const request = { pod_sandbox_id: sandboxID };
      return found(
        (await call<{ status: WirePodSandboxStatus | null }>("PodSandboxStatus", request, what)).status,
        what,
      );
    },
    containerStatus: async (containerID) => {
      const what = `status of container ${containerID}`;
      const request = { container_id: containerID };
      return found((await call<{ status: WireContainerStatus | null }>("ContainerStatus", request, what)).status, what);
    },
  };
}

/** Stopping or removing what is not there is success. */
export async function goneIsFine(call: Promise<unknown>): Promise<void> {
  try {
    await call;
  } catch (err) {
    if (!hasCode(err, "NotFound")) throw err;
  }
}
