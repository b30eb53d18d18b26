import { createServer } from "node:http";
import type { Pod } from "../../../agent/kube/types.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { connectCRI } from "../../../agent/runtime/cri/connect.ts";
import { type CNIDirectories, connectDocker } from "../../../agent/runtime/docker/connect.ts";
import type { Runtime } from "../../../agent/runtime/port.ts";
import { directoryUsage } from "../../../agent/stats/directory-usage.ts";
import { CertificateAuthority } from "../apiserver/pki.ts";
import { pauseImageName } from "../images/images.ts";
import { servedPods, startAgentServer } from "./agent-server.ts";

/** The runtime to connect to. */
export type AgentConnection =
  | { kind: "cri"; endpoint: string }
  | { kind: "docker"; socketPath: string; cni: CNIDirectories };

// The streaming routes as a process of their own, to run in a test node's network namespace, where the runtime's streaming
// server listens: agent-process.ts CONNECTION PORT PODS. Plain HTTP is on PORT, TLS on PORT + 1, and on PORT + 2 the
// number of sessions under way.
const [connectionText = "{}", portText = "", podsText = "[]"] = process.argv.slice(2);
const port = Number(portText);
const runtime = await connect(JSON.parse(connectionText) as AgentConnection);
const pods = servedPods(...(JSON.parse(podsText) as Pod[]));
const { certificate: cert, key } = CertificateAuthority.create().issue({ commonName: "node", usage: "server" });
const host = "0.0.0.0";
const plain = await startAgentServer({ pods, runtime, listen: { host, port } });
const secure = await startAgentServer({ pods, runtime, listen: { host, port: port + 1 }, tls: { cert, key } });
createServer((_request, response) => response.end(String(plain.running.size + secure.running.size))).listen(
  port + 2,
  host,
);

async function connect(connection: AgentConnection): Promise<Runtime> {
  const common = { requestTimeoutMs: 120_000, log: silentLogger };
  if (connection.kind === "cri") return await connectCRI({ runtimeEndpoint: connection.endpoint, ...common });
  const { socketPath, cni } = connection;
  const logs = { maxSizeBytes: 10 << 20, maxFiles: 5 };
  return await connectDocker({
    nodeName: "node-1",
    socketPath,
    cni,
    logs,
    pauseImage: pauseImageName,
    measureTree: directoryUsage,
    ...common,
  });
}
