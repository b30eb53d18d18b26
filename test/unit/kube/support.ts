import { type AccessSpec, createAccess } from "../../../agent/kube/access.ts";
import { createApiClient, type KubeClient } from "../../../agent/kube/client.ts";
import type { TransportLimits } from "../../../agent/kube/connection.ts";
import { createTransport } from "../../../agent/kube/transport.ts";
import type { Pod } from "../../../agent/kube/types.ts";
import { systemClock } from "../../../agent/lib/clock.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { fakeCA } from "../../support/fake-http.ts";

/** Access to a fake server by its URL. */
export function specFor(server: string, more: Partial<AccessSpec> = {}): AccessSpec {
  const ca = { data: Buffer.from(fakeCA) };
  return { server, origin: "test", insecureSkipVerify: false, impersonate: {}, ca, ...more };
}

/** A client without rate limit, and its transport, to a fake server. Dispose the stack. */
export function connectTo(
  server: string,
  options: {
    spec?: Partial<AccessSpec>;
    limits?: Partial<TransportLimits>;
    timeoutMs?: number;
    disableHttp2?: boolean;
  } = {},
): KubeClient {
  const base = { clock: systemClock, log: silentLogger, userAgent: "kubelet/test" };
  const access = createAccess(specFor(server, options.spec), base);
  const { disableHttp2 = false } = options;
  const transport = createTransport({ ...base, access, disableHttp2, limits: options.limits ?? {} });
  const { timeoutMs = 5_000 } = options;
  const client = createApiClient({ ...base, transport, qps: -1, burst: 0, timeoutMs });
  client[Symbol.asyncDispose] = () => transport[Symbol.asyncDispose]();
  return client;
}

/** A small pod. */
export function pod(name: string, resourceVersion: string, more: { uid?: string; nodeName?: string } = {}): Pod {
  const { uid = `uid-${name}`, nodeName = "n1" } = more;
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name, namespace: "ns", uid, resourceVersion },
    spec: { nodeName, containers: [] },
  };
}

/** Waits until `condition` holds, looking again whenever the event loop has turned. */
export async function until(condition: () => boolean, timeoutMs = 4_000): Promise<void> {
  const endMs = performance.now() + timeoutMs;
  while (!condition()) {
    if (performance.now() > endMs) throw new Error(`still not so after ${timeoutMs} ms: ${condition.toString()}`);
    await new Promise((resolve) => void setTimeout(resolve, 2));
  }
}
