import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { ignoreErrno } from "../agent/lib/errno.ts";
import { namesIn } from "../agent/lib/names-in.ts";
import { isObject, type JSONObject } from "./json.ts";
import type { CNIArgs } from "./pod.ts";

/** What is known of one interface that was added to a network, or was about to be. */
export interface CachedAttachment {
  networkName: string;
  containerID: string;
  ifName: string;
  netnsPath: string;
  args: CNIArgs;
  capabilities: JSONObject;
  /** The text of the `.conflist` that ADD used; `undefined` in files older than this layout. */
  config: string | undefined;
  /** The result as JSON. `undefined`: ADD did not come to its end, and may have left a part of its work. */
  result: JSONObject | undefined;
  /** Written by this agent. Others keep theirs in the same directory. */
  isOurs: boolean;
}

// libcni's name for the layout.
const kind = "cniCacheV1";
const owner = "nodelet";

/**
 * The files `DIR/results/NETWORK-CONTAINER-INTERFACE` that libcni defines, which outlive the agent and are readable by other tools.
 */
export class AttachmentCache {
  readonly #dir: string;

  constructor(cacheDir: string) {
    this.#dir = join(cacheDir, "results");
  }

  /** Replaces the attachment's file. */
  async write(attachment: Omit<CachedAttachment, "isOurs">): Promise<void> {
    const { networkName, containerID, ifName, netnsPath, args, capabilities, config = "", result } = attachment;
    await mkdir(this.#dir, { recursive: true, mode: 0o700 });
    const content = {
      kind,
      owner, // libcni passes over what it does not know
      containerId: containerID,
      config: Buffer.from(config).toString("base64"), // how Go writes bytes
      ifName,
      networkName,
      netns: netnsPath,
      cniArgs: args,
      capabilityArgs: capabilities,
      ...(result === undefined ? {} : { result }),
    };
    // Renamed, so that a reader sees the old one or the new one, but not forced to the disk, which can take long while a pod waits:
    // the record outlives the agent without that, and after a crash of the machine there is no namespace to undo anything in.
    const path = this.#path(attachment);
    await rm(temporaryOf(path), { force: true });
    await writeFile(temporaryOf(path), JSON.stringify(content), { mode: 0o600, flag: "wx" });
    await rename(temporaryOf(path), path);
  }

  /** Forgets an attachment; one that is not there is fine. */
  async remove(attachment: Pick<CachedAttachment, "networkName" | "containerID" | "ifName">): Promise<void> {
    await rm(this.#path(attachment), { force: true });
  }

  /** The attachments of one interface: one, unless the network's name was changed on disk while the container ran. */
  async find(containerID: string, ifName: string): Promise<CachedAttachment[]> {
    const suffix = `-${containerID}-${ifName}`;
    const found: CachedAttachment[] = [];
    for (const name of await namesIn(this.#dir)) {
      if (!name.endsWith(suffix)) continue;
      const attachment = await this.#read(name, { networkName: name.slice(0, -suffix.length), containerID, ifName });
      if (attachment?.containerID === containerID && attachment.ifName === ifName) found.push(attachment);
    }
    return found;
  }

  /** All attachments of a network. Files that cannot be read are left out. */
  async list(networkName: string): Promise<CachedAttachment[]> {
    const found: CachedAttachment[] = [];
    for (const name of await namesIn(this.#dir)) {
      if (!name.startsWith(`${networkName}-`)) continue;
      const attachment = await this.#read(name, undefined);
      if (attachment?.networkName === networkName) found.push(attachment);
    }
    return found;
  }

  #path({ networkName, containerID, ifName }: Pick<CachedAttachment, "networkName" | "containerID" | "ifName">) {
    return join(this.#dir, `${networkName}-${containerID}-${ifName}`);
  }

  /** `named`: what the file's name says, for files that do not say it themselves. */
  async #read(
    name: string,
    named: Pick<CachedAttachment, "networkName" | "containerID" | "ifName"> | undefined,
  ): Promise<CachedAttachment | undefined> {
    const text = await readFile(join(this.#dir, name), "utf8").catch(ignoreErrno("ENOENT", "EISDIR"));
    if (text === undefined) return undefined;
    const content = parseObject(text);
    if (content?.["kind"] !== kind) {
      // Before this layout the file held the result alone; one that was cut off by a crash holds nothing of use.
      if (named === undefined) return undefined;
      return { ...named, netnsPath: "", args: [], capabilities: {}, config: undefined, result: content, isOurs: false };
    }
    const string = (key: string) => (typeof content[key] === "string" ? content[key] : "");
    const config = Buffer.from(string("config"), "base64").toString("utf8");
    return {
      networkName: string("networkName"),
      containerID: string("containerId"),
      ifName: string("ifName"),
      netnsPath: string("netns"),
      args: argsOf(content["cniArgs"]),
      capabilities: isObject(content["capabilityArgs"]) ? content["capabilityArgs"] : {},
      config: config === "" ? undefined : config,
      result: isObject(content["result"]) ? content["result"] : undefined,
      isOurs: content["owner"] === owner,
    };
  }
}

/** Not mistaken for a record: it does not end as one. Operations on a container follow each other, so one name will do. */
function temporaryOf(path: string): string {
  return `${path}.tmp`;
}

function argsOf(value: unknown): CNIArgs {
  if (!Array.isArray(value)) return [];
  return value.flatMap((pair: unknown) => {
    if (!Array.isArray(pair)) return [];
    const [key, text] = pair as unknown[];
    return typeof key === "string" && typeof text === "string" ? [[key, text] as const] : [];
  });
}

function parseObject(text: string): JSONObject | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}
