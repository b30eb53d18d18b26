import { readdir, readFile, readlink } from "node:fs/promises";
import type { IncomingHttpHeaders } from "node:http";
import { request as httpsRequest } from "node:https";
import { connect as tcpConnect, type Socket } from "node:net";
import { connect as tlsConnect, type TLSSocket } from "node:tls";
import type { KubeClient } from "../../../agent/kube/client.ts";
import { serviceAccounts } from "../../../agent/kube/resources.ts";
import { CertificateAuthority, type CertificateRequest, type KeyPair } from "../../support/apiserver/pki.ts";
import type { LocalCluster } from "../../support/cluster/local-cluster.ts";
import { until } from "./cluster.ts";

const requestTimeoutMs = 20_000;
const kubeletPort = 10_250;

/** How somebody shows the agent who he is. */
export interface Credentials {
  certificate?: KeyPair;
  token?: string;
}

export interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  text: string;
}

/** One node's API as a machine of its network reaches it, without the API server in between. */
export interface Direct {
  readonly host: string;
  /** A request whose target is sent as it is. Rejects when the connection ends without an answer. */
  ask(
    target: string,
    options?: Credentials & { method?: string; headers?: Record<string, string>; body?: string; port?: number },
  ): Promise<Answer>;
  /** A connection that speaks no HTTP yet. */
  tls(credentials?: Credentials): Promise<TLSSocket>;
  tcp(): Promise<Socket>;
  /** A certificate of the cluster's authority, or of one that only has the same name. */
  certificate(request: CertificateRequest, options?: { isForged?: boolean }): KeyPair;
  /** A token of a new service account; its name says what it may do (see the test API server's rights). */
  token(account: string): Promise<string>;
}

export async function openDirect(local: LocalCluster, client: KubeClient, namespace: string): Promise<Direct> {
  const host = local.node.nodeIP;
  const kept = JSON.parse(await readFile(local.serverKeysFile, "utf8")) as { keys: { authority: KeyPair } };
  const authority = new CertificateAuthority(kept.keys.authority);
  const forger = CertificateAuthority.create();
  const connecting = { host, port: kubeletPort, rejectUnauthorized: false, ALPNProtocols: ["http/1.1"] };
  return {
    host,
    ask: (target, options = {}) => {
      const { method = "GET", headers = {}, body, token, certificate, port = kubeletPort } = options;
      return new Promise((resolve, reject) => {
        const request = httpsRequest({
          ...connecting,
          port,
          path: target,
          method,
          agent: false,
          timeout: requestTimeoutMs,
          headers: { ...(token === undefined ? {} : { authorization: `Bearer ${token}` }), ...headers },
          ...(certificate === undefined ? {} : { cert: certificate.certificate, key: certificate.key }),
        });
        request.on("timeout", () => request.destroy(new Error(`no answer to ${method} ${target}`)));
        request.on("error", reject);
        request.on("response", (response) => {
          let text = "";
          response.on("data", (chunk: Buffer) => (text += chunk.toString()));
          response.on("error", reject);
          response.on("end", () => resolve({ status: response.statusCode ?? 0, headers: response.headers, text }));
        });
        request.end(body);
      });
    },
    tls: (credentials = {}) =>
      new Promise((resolve, reject) => {
        const { certificate } = credentials;
        const pair = certificate === undefined ? {} : { cert: certificate.certificate, key: certificate.key };
        const socket = tlsConnect({ ...connecting, ...pair }, () => resolve(socket));
        socket.on("error", reject);
      }),
    tcp: () =>
      new Promise((resolve, reject) => {
        const socket = tcpConnect(kubeletPort, host, () => resolve(socket));
        socket.on("error", reject);
      }),
    certificate: (request, { isForged = false } = {}) => (isForged ? forger : authority).issue(request),
    token: async (account) => {
      const metadata = { name: account, namespace };
      await client.create(serviceAccounts, { apiVersion: "v1", kind: "ServiceAccount", metadata });
      const path = `/api/v1/namespaces/${namespace}/serviceaccounts/${account}/token`;
      const body = { apiVersion: "authentication.k8s.io/v1", kind: "TokenRequest", spec: {} };
      return (await client.request<{ status: { token: string } }>("POST", path, body)).status.token;
    },
  };
}

/** What a process holds: what must come down again after an attack. */
export interface Holdings {
  files: number;
  sockets: number;
  children: number;
  residentMB: number;
}

export async function holdingsOf(pid: number): Promise<Holdings> {
  const [names, status, children] = await Promise.all([
    readdir(`/proc/${pid}/fd`),
    readFile(`/proc/${pid}/status`, "utf8"),
    readFile(`/proc/${pid}/task/${pid}/children`, "utf8").catch(() => ""),
  ]);
  const targets = await Promise.all(names.map((name) => readlink(`/proc/${pid}/fd/${name}`).catch(() => "")));
  return {
    files: targets.filter((target) => target !== "").length,
    sockets: targets.filter((target) => target.startsWith("socket:")).length,
    children: children.split(" ").filter((word) => word.trim() !== "").length,
    residentMB: Math.round(Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1] ?? 0) / 1024),
  };
}

// The agent's own traffic with API server and runtime comes and goes.
const filesSlack = 8;
// The heap's young generation and what its collector has not returned yet.
const residentSlackMB = 40;

/** Resolves when a process holds about what it held before; rejects with what it holds after a minute. */
export async function untilLetGo(pid: number, before: Holdings): Promise<void> {
  let now = before;
  const isBack = async () => {
    now = await holdingsOf(pid);
    return (
      now.files <= before.files + filesSlack &&
      now.sockets <= before.sockets + filesSlack &&
      now.children <= before.children + 1 &&
      now.residentMB <= before.residentMB + residentSlackMB
    );
  };
  await until("the agent lets go", isBack).catch((err: unknown) => {
    throw new Error(`${String(err)}: before ${JSON.stringify(before)}, now ${JSON.stringify(now)}`);
  });
}
