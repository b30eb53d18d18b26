import { mkdir, readFile, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { writeFileAtomic } from "../agent/lib/atomic-file.ts";
import { ignoreErrno } from "../agent/lib/errno.ts";
import { namesIn } from "../agent/lib/names-in.ts";
import { isObject, type JSONObject, parseObject } from "./json.ts";
import type { CNIArgs } from "./request.ts";

/** What is known of one interface that was added to a network, or was about to be. */
export interface CachedAttachment {
  networkName: string;
  containerID: string;
  ifName: string;
  netnsPath: string;
  /** The namespace that `netnsPath` led to at ADD; `undefined` in the records of others. */
  netnsID: string | undefined;
  args: CNIArgs;
  capabilities: JSONObject;
  /** The text of the `.conflist` that ADD used; `undefined` in files older than this layout. */
  config: string | undefined;
  /** The result as JSON. `undefined`: ADD did not come to its end, and may have left a part of its work. */
  result: JSONObject | undefined;
  /** Written by this agent. Others keep theirs in the same directory. */
  isOurs: boolean;
  /** The file cannot be read, or holds nothing of use, as after a power failure: only what its name says is known. */
  isUnreadable: boolean;
}

/** What an attachment is called. */
export type AttachmentName = Pick<CachedAttachment, "networkName" | "containerID" | "ifName">;

// libcni's name for the layout.
const kind = "cniCacheV1";
const owner = "nodelet";
// How writeFileAtomic calls what it has not finished: not mistaken for a record.
const temporarySuffix = ".tmp";
// Of a file that is being written. What is older was left by a crash.
export const temporaryAgeMs = 10 * 60_000;

/**
 * The files `DIR/results/NETWORK-CONTAINER-INTERFACE` that libcni defines, which outlive the agent and are readable by other tools.
 */
export class AttachmentCache {
  readonly #dir: string;

  constructor(cacheDir: string) {
    this.#dir = join(cacheDir, "results");
  }

  /**
   * Replaces the attachment's file. It is on the disk then: the address that it stands for is taken after a crash of the machine too,
   * as address pools are files that survive it.
   */
  async write(attachment: Omit<CachedAttachment, "isOurs" | "isUnreadable">): Promise<void> {
    const { containerID, netnsPath, netnsID, config = "", result } = attachment;
    await mkdir(this.#dir, { recursive: true, mode: 0o700 });
    const content = {
      kind,
      // libcni passes over what it does not know.
      owner,
      ...(netnsID === undefined ? {} : { netnsID }),
      containerId: containerID,
      config: Buffer.from(config).toString("base64"), // how Go writes bytes
      ifName: attachment.ifName,
      networkName: attachment.networkName,
      netns: netnsPath,
      cniArgs: attachment.args,
      capabilityArgs: attachment.capabilities,
      ...(result === undefined ? {} : { result }),
    };
    await writeFileAtomic(this.#path(attachment), JSON.stringify(content), 0o600);
  }

  /** Forgets an attachment; one that is not there is fine. */
  async remove(attachment: AttachmentName): Promise<void> {
    await rm(this.#path(attachment), { force: true });
  }

  /**
   * The attachments of one interface: ours, which are one, unless the network's name was changed while the container ran. Where there
   * is none of ours, those of others: of a runtime before this one. A plugin that runs others may keep its own beside ours.
   */
  async find(containerID: string, ifName: string): Promise<CachedAttachment[]> {
    const suffix = `-${containerID}-${ifName}`;
    const found: CachedAttachment[] = [];
    for (const name of await namesIn(this.#dir)) {
      if (!name.endsWith(suffix)) continue;
      const attachment = await this.#read(name, { networkName: name.slice(0, -suffix.length), containerID, ifName });
      if (attachment?.containerID === containerID && attachment.ifName === ifName) found.push(attachment);
    }
    const ours = found.filter(({ isOurs }) => isOurs);
    return ours.length > 0 ? ours : found;
  }

  /** All attachments in this layout, and of `networkName` also those whose file cannot be read. */
  async list(networkName: string | undefined): Promise<CachedAttachment[]> {
    const found: CachedAttachment[] = [];
    for (const name of await namesIn(this.#dir)) {
      if (name.endsWith(temporarySuffix)) continue;
      const named = networkName === undefined ? undefined : nameIn(networkName, name);
      const attachment = await this.#read(name, named);
      if (attachment !== undefined && (attachment.isUnreadable || attachment.isInLayout)) found.push(attachment);
    }
    return found;
  }

  /**
   * Removes what a crash left of this container's files that were being written, however young: the operations on a container follow
   * each other, so nobody writes them now.
   */
  async removeTemporaryOf(containerID: string): Promise<void> {
    for (const name of await namesIn(this.#dir)) {
      const isOf = name.includes(`-${containerID}-`) && name.endsWith(temporarySuffix);
      if (isOf) await rm(join(this.#dir, name), { force: true });
    }
  }

  /** Removes what crashes left of files that were being written. */
  async removeTemporary(nowMs: number): Promise<void> {
    for (const name of await namesIn(this.#dir)) {
      if (!name.endsWith(temporarySuffix)) continue;
      const path = join(this.#dir, name);
      const stats = await stat(path).catch(ignoreErrno("ENOENT"));
      if (stats !== undefined && nowMs - stats.mtimeMs > temporaryAgeMs) await rm(path, { force: true });
    }
  }

  #path({ networkName, containerID, ifName }: AttachmentName) {
    return join(this.#dir, `${networkName}-${containerID}-${ifName}`);
  }

  /** `named`: what the file's name says, for files that do not say it themselves. */
  async #read(
    name: string,
    named: AttachmentName | undefined,
  ): Promise<(CachedAttachment & { isInLayout: boolean }) | undefined> {
    let content: JSONObject | undefined;
    try {
      const text = await readFile(join(this.#dir, name), "utf8").catch(ignoreErrno("ENOENT", "EISDIR"));
      if (text === undefined) return undefined;
      content = parseObject(text);
    } catch {
      // One file that the disk does not give must not hide all others.
    }
    if (content?.["kind"] !== kind) {
      if (named === undefined) return undefined;
      return {
        ...named,
        ...{ netnsPath: "", netnsID: undefined, args: [], capabilities: {}, config: undefined, isOurs: false },
        // Before this layout the file held the result alone.
        ...{ result: content, isUnreadable: content === undefined, isInLayout: false },
      };
    }
    const string = (key: string) => (typeof content[key] === "string" ? content[key] : "");
    const config = Buffer.from(string("config"), "base64").toString("utf8");
    return {
      networkName: string("networkName"),
      containerID: string("containerId"),
      ifName: string("ifName"),
      netnsPath: string("netns"),
      netnsID: string("netnsID") || undefined,
      args: argsOf(content["cniArgs"]),
      capabilities: isObject(content["capabilityArgs"]) ? content["capabilityArgs"] : {},
      config: config === "" ? undefined : config,
      result: isObject(content["result"]) ? content["result"] : undefined,
      isOurs: content["owner"] === owner,
      isUnreadable: false,
      isInLayout: true,
    };
  }
}

/** What a file of this network is about, by its name; IDs of containers hold no "-", names of interfaces may. Pure. */
function nameIn(networkName: string, fileName: string): AttachmentName | undefined {
  if (!fileName.startsWith(`${networkName}-`)) return undefined;
  const [, containerID, ifName] = /^([a-zA-Z0-9_.]+)-(.+)$/.exec(fileName.slice(networkName.length + 1)) ?? [];
  return containerID === undefined || ifName === undefined ? undefined : { networkName, containerID, ifName };
}

function argsOf(value: unknown): CNIArgs {
  if (!Array.isArray(value)) return [];
  return value.flatMap((pair: unknown) => {
    if (!Array.isArray(pair)) return [];
    const [key, text] = pair as unknown[];
    return typeof key === "string" && typeof text === "string" ? [[key, text] as const] : [];
  });
}
