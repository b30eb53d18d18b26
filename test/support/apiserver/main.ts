import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { writeFileAtomic } from "../../../agent/lib/atomic-file.ts";
import { isObject, stringAt } from "./json.ts";
import { clusterRights } from "./rights.ts";
import { type ListenAddress, type ServerKeys, startTestApiServer } from "./server.ts";

const usage = `usage: main.ts --dir DIR [--listen ADDR:PORT]... [--node NAME] [--service-cidr CIDR] [--cluster-cidr CIDR] [--name SAN]...
Starts the test API server, writes ca.crt, admin.kubeconfig and node.kubeconfig to DIR, prints one line when ready, and ends on SIGTERM.
Keys and addresses are kept in DIR, so that a server started there again serves the same kubeconfigs.`;

/** What a directory keeps for the next start. */
interface Kept {
  keys: ServerKeys;
  listen: ListenAddress[];
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      dir: { type: "string" },
      listen: { type: "string", multiple: true },
      node: { type: "string", default: "node" },
      name: { type: "string", multiple: true },
      "service-cidr": { type: "string" },
      "cluster-cidr": { type: "string" },
      help: { type: "boolean" },
    },
  });
  if (values.help === true || values.dir === undefined) {
    process.stdout.write(`${usage}\n`);
    process.exitCode = values.help === true ? 0 : 1;
    return;
  }
  const { dir } = values;
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const keptPath = join(dir, "server.json");
  const kept = await readKept(keptPath);
  const listen = values.listen?.map(parseAddress) ?? kept?.listen;
  const server = await startTestApiServer({
    ...(listen === undefined ? {} : { listen }),
    ...(kept === undefined ? {} : { keys: kept.keys }),
    ...(values.name === undefined ? {} : { names: values.name }),
    ...(values["service-cidr"] === undefined ? {} : { serviceCIDR: values["service-cidr"] }),
    ...(values["cluster-cidr"] === undefined ? {} : { clusterCIDR: values["cluster-cidr"] }),
    authorizer: clusterRights,
  });
  await writeFileAtomic(keptPath, JSON.stringify({ keys: server.keys, listen: server.addresses }));
  await writeFileAtomic(join(dir, "ca.crt"), server.caCertificate);
  await writeFileAtomic(join(dir, "admin.kubeconfig"), server.kubeconfig("admin"));
  await writeFileAtomic(join(dir, "node.kubeconfig"), server.kubeconfig(`node:${values.node}`));
  const stop = () => void server.close().then(() => process.exit(0));
  process.once("SIGTERM", stop);
  process.once("SIGINT", stop);
  // Whoever reads this may end us at once.
  process.stdout.write(`test API server ready at ${server.url}, kubeconfig ${join(dir, "admin.kubeconfig")}\n`);
}

function parseAddress(text: string): ListenAddress {
  const at = text.lastIndexOf(":");
  const port = Number(text.slice(at + 1));
  if (at < 0 || !Number.isInteger(port)) throw new Error(`--listen ${text}: wanted ADDR:PORT`);
  return { host: text.slice(0, at).replaceAll(/[[\]]/g, ""), port };
}

async function readKept(path: string): Promise<Kept | undefined> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch {
    return undefined; // The first start in this directory.
  }
  const value: unknown = JSON.parse(text);
  if (!isObject(value) || !Array.isArray(value["listen"])) {
    throw new Error(`${path} is damaged; remove it to start anew`);
  }
  return {
    keys: {
      authority: {
        certificate: stringAt(value, "keys", "authority", "certificate"),
        key: stringAt(value, "keys", "authority", "key"),
      },
      tokenKey: stringAt(value, "keys", "tokenKey"),
    },
    listen: value["listen"].filter(isObject).map((a) => ({ host: stringAt(a, "host"), port: Number(a["port"]) })),
  };
}

main().catch((err: unknown) => {
  process.stderr.write(`test API server: ${err instanceof Error ? err.message : String(err)}\n`);
  process.exitCode = 1;
});
