import { mkdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { writeFileAtomic } from "../agent/lib/atomic-file.ts";
import { ignoreErrno } from "../agent/lib/errno.ts";
import { AgentError } from "../agent/lib/errors.ts";
import type { Logger } from "../agent/lib/log.ts";
import { cidrFamily } from "./cidr.ts";
import { readConfigDir } from "./config-dir.ts";
import { parseObject } from "./json.ts";
import { type PluginTimeouts, Plugins } from "./plugins.ts";
import { negotiate, type SpecVersion } from "./version.ts";

export interface DefaultConfigOptions {
  readonly confDir: string;
  /** The node's `podCIDRs`: one, or one of each family. */
  readonly podCIDRs: readonly string[];
  /** Plugins that need not be there are used only if they are. */
  readonly binDirs: readonly string[];
  readonly log: Logger;
  /** The bridge's name. Default `cni0`, as plugins and kubenet call it. */
  readonly bridge?: string;
  /** Traffic of pods that leaves the node takes the node's address. Default true: nobody else knows the way to the pods. */
  readonly ipMasq?: boolean;
  readonly mtu?: number;
  /** Where host-local keeps the addresses in use; its own default unless given. */
  readonly dataDir?: string;
  readonly timeouts?: PluginTimeouts;
  /** Spares those who call again and again the plugins' versions. */
  readonly plugins?: Plugins;
}

/** The file's name sorts behind those that network providers use, also behind those without a number: theirs take precedence. */
export const defaultConfigName = "zz-nodelet.conflist";
// How it was called before. It sorted before a provider's calico.conflist.
const formerConfigName = "99-nodelet.conflist";
// Set in our file alone. Whoever takes it out has made the file their own.
const marker = { managedBy: "nodelet" };
const mandatory = ["bridge", "host-local", "portmap"];
const optional = ["firewall", "bandwidth"];
// Older ones cannot be chained with firewall.
const versionsWanted: readonly SpecVersion[] = ["0.4.0", "1.0.0", "1.1.0"];

/**
 * Writes a bridge network for the node's pod addresses, unless the directory has a network that is not ours. Ours is rewritten when
 * the addresses, the plugins or these options change. May be called at any time, as often as wanted.
 *
 * @returns `foreign`: there is another network, or our file was taken over; nothing was touched
 * @throws AgentError Invalid for addresses that are none, Unavailable if a plugin it needs is missing
 */
export async function writeDefaultConfig(options: DefaultConfigOptions): Promise<"written" | "unchanged" | "foreign"> {
  const { confDir, binDirs, log, timeouts } = options;
  const path = join(confDir, defaultConfigName);
  const formerPath = join(confDir, formerConfigName);
  const [before, former] = await Promise.all([readIfThere(path), readIfThere(formerPath)]);
  const isFormerOurs = former !== undefined && isOurs(former);
  if (before !== undefined && !isOurs(before)) return "foreign";
  const { file } = await readConfigDir(confDir);
  if (file !== undefined && file !== path && !(file === formerPath && isFormerOurs)) return "foreign";

  const { plugins = new Plugins({ binDirs, log, ...(timeouts === undefined ? {} : { timeouts }) }) } = options;
  const answers = [];
  for (const type of [...mandatory, ...optional]) {
    const plugin = await plugins.find(type);
    if (!("problem" in plugin)) answers.push({ type, supported: await plugins.versionsOf(plugin) });
    else if (mandatory.includes(type)) throw new AgentError("Unavailable", `default network: ${plugin.problem}`);
  }
  const agreed = negotiate(versionsWanted, answers);
  if ("problem" in agreed) throw new AgentError("Unavailable", `default network: ${agreed.problem}`);
  const present = new Set(answers.map(({ type }) => type));
  const text = renderDefaultConfig(options, agreed.version, present);
  if (text === before && !isFormerOurs) return "unchanged";
  await mkdir(confDir, { recursive: true, mode: 0o755 });
  // Like any file of this directory: other tools of the node read it, and there is nothing secret in it.
  await writeFileAtomic(path, text, 0o644);
  if (isFormerOurs) await rm(formerPath, { force: true });
  return "written";
}

/** The text of the default network. Pure; throws as {@link writeDefaultConfig}. */
export function renderDefaultConfig(
  options: Pick<DefaultConfigOptions, "podCIDRs" | "bridge" | "ipMasq" | "mtu" | "dataDir">,
  version: SpecVersion,
  plugins: ReadonlySet<string>,
): string {
  const { podCIDRs, bridge = "cni0", ipMasq = true, mtu, dataDir } = options;
  const families = podCIDRs.map(familyOf);
  if (podCIDRs.length === 0 || new Set(families).size !== families.length) {
    throw new AgentError("Invalid", `podCIDRs [${podCIDRs.join(" ")}]: one is needed, or one of each address family`);
  }
  const config = {
    cniVersion: version,
    name: "nodelet",
    ...marker,
    plugins: [
      {
        type: "bridge",
        bridge,
        isGateway: true,
        // The bridge outlives a change of the node's addresses, and has the old one then.
        forceAddress: true,
        ipMasq,
        // A pod may reach itself through its Service.
        hairpinMode: true,
        ...(mtu === undefined ? {} : { mtu }),
        ipam: {
          type: "host-local",
          ranges: podCIDRs.map((subnet) => [{ subnet }]),
          routes: families.map((family) => ({ dst: family === 6 ? "::/0" : "0.0.0.0/0" })),
          ...(dataDir === undefined ? {} : { dataDir }),
        },
      },
      { type: "portmap", capabilities: { portMappings: true } },
      ...(plugins.has("firewall") ? [{ type: "firewall" }] : []),
      ...(plugins.has("bandwidth") ? [{ type: "bandwidth", capabilities: { bandwidth: true } }] : []),
    ],
  };
  return `${JSON.stringify(config, undefined, 2)}\n`;
}

async function readIfThere(path: string): Promise<string | undefined> {
  return await readFile(path, "utf8").catch(ignoreErrno("ENOENT"));
}

function isOurs(text: string): boolean {
  return parseObject(text)?.["managedBy"] === marker.managedBy;
}

function familyOf(cidr: string): 4 | 6 {
  const family = cidrFamily(cidr);
  if (family === undefined) throw new AgentError("Invalid", `pod CIDR "${cidr}" is no address with a prefix length`);
  return family;
}
