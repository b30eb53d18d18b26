import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { uidOf } from "../kube/pod-resources.ts";
import type { Pod } from "../kube/types.ts";
import { writeFileAtomic } from "../lib/atomic-file.ts";
import { ignoreErrno } from "../lib/errno.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import { exec } from "../lib/exec.ts";
import type { Logger } from "../lib/log.ts";
import type { IDMapping } from "../runtime/port.ts";

/** Which IDs of the node stand behind those in a pod's user namespace. */
export interface IDMappings {
  uids: IDMapping[];
  gids: IDMapping[];
}

/** IDs of the node, as users and as groups: `first` … `first + count - 1`. */
export interface IDRange {
  first: number;
  count: number;
}

export interface UserNamespacesOptions {
  /** kubelet's root directory. */
  rootDir: string;
  log: Logger;
  /** So many IDs each pod gets; a multiple of 65536. */
  idsPerPod: number;
  /** Which IDs pods may get. Asked once, when the first pod wants some. Default: {@link delegatedIDs}. */
  readRange?(idsPerPod: number): Promise<IDRange>;
}

// Longer files in the place of ours were made by somebody else.
const fileBytesMax = 4_096;
// As many IDs as there are: 32 bits, where the last means "none".
const idsMax = 2 ** 32;
const getsubidsTimeoutMs = 10_000;

/**
 * Gives each pod that asks for a user namespace of its own (`hostUsers: false`) a range of IDs that no other one has. It
 * is kept beside the pod's volumes, `pods/<uid>/userns`, in the reference's format: a pod keeps its range when agents change.
 */
export class UserNamespaces {
  readonly #options: UserNamespacesOptions;
  readonly #taken = new Map<string, IDMappings>();
  /** Pods whose record could not be read when all were: somebody may have mended it since. */
  readonly #unread = new Set<string>();
  #ready: Promise<IDRange> | undefined;

  constructor(options: UserNamespacesOptions) {
    this.#options = options;
  }

  /**
   * The pod's IDs: those that it has, or new ones. Call it for pods with `hostUsers: false`.
   * Rejects with Unavailable if none are left, and with Invalid for what an administrator has to mend.
   */
  async mappings(pod: Pod): Promise<IDMappings> {
    const uid = uidOf(pod);
    const range = await this.#load();
    const known = this.#taken.get(uid) ?? (this.#unread.has(uid) ? await this.#read(uid) : undefined);
    this.#unread.delete(uid);
    const mappings = known ?? this.#choose(range);
    this.#taken.set(uid, mappings);
    if (known !== undefined) return known;
    try {
      const path = this.#pathOf(uid);
      await mkdir(dirname(path), { recursive: true, mode: 0o750 });
      await writeFileAtomic(path, renderMappings(mappings));
    } catch (err) {
      this.#taken.delete(uid);
      throw err;
    }
    return mappings;
  }

  /** Nothing of the pod runs any more: others may have its IDs. Files of volumes never carry them. */
  async release(podUID: string): Promise<void> {
    this.#taken.delete(podUID);
    this.#unread.delete(podUID);
    await rm(this.#pathOf(podUID), { force: true }).catch(ignoreErrno("ENOTDIR"));
  }

  #pathOf(podUID: string): string {
    return join(this.#options.rootDir, "pods", podUID, "userns");
  }

  // Before the first range is given away, all that were given by agents before this one have to be known.
  async #load(): Promise<IDRange> {
    this.#ready ??= this.#recall().catch((err: unknown) => {
      this.#ready = undefined; // it may be mended
      throw err;
    });
    return await this.#ready;
  }

  async #recall(): Promise<IDRange> {
    const { rootDir, log, idsPerPod, readRange = delegatedIDs } = this.#options;
    const range = await readRange(idsPerPod);
    const uids = (await readdir(join(rootDir, "pods")).catch(ignoreErrno("ENOENT"))) ?? [];
    for (const uid of uids) {
      try {
        const mappings = await this.#read(uid);
        if (mappings !== undefined) this.#taken.set(uid, mappings);
      } catch (err) {
        this.#unread.add(uid);
        log.warn({ podUID: uid, err: messageOf(err) }, "IDs of a pod's user namespace not known");
      }
    }
    return range;
  }

  async #read(uid: string): Promise<IDMappings | undefined> {
    const path = this.#pathOf(uid);
    const text = await readFile(path, "utf8").catch(ignoreErrno("ENOENT", "ENOTDIR"));
    return text === undefined ? undefined : parseMappings(text, path);
  }

  #choose({ first, count }: IDRange): IDMappings {
    const { idsPerPod } = this.#options;
    const taken = [...this.#taken.values()].flatMap(({ uids }) => uids);
    for (let hostID = first; hostID + idsPerPod <= first + count; hostID += idsPerPod) {
      const isFree = taken.every(
        (other) => hostID + idsPerPod <= other.hostID || other.hostID + other.length <= hostID,
      );
      if (!isFree) continue;
      const mapping = { hostID, containerID: 0, length: idsPerPod };
      return { uids: [mapping], gids: [{ ...mapping }] };
    }
    throw new AgentError(
      "Unavailable",
      `no ${idsPerPod} IDs are left for another user namespace: all are given to pods`,
    );
  }
}

function renderMappings({ uids, gids }: IDMappings): string {
  const list = (mappings: readonly IDMapping[]) =>
    mappings.map(({ hostID, containerID, length }) => ({ hostId: hostID, containerId: containerID, length }));
  return JSON.stringify({ uidMappings: list(uids), gidMappings: list(gids) });
}

function parseMappings(text: string, path: string): IDMappings {
  const broken = (why: string) => new AgentError("Invalid", `${path}: ${why}; remove it if the pod does not run`);
  let value: unknown;
  try {
    if (text.length <= fileBytesMax) value = JSON.parse(text);
  } catch {
    // told below
  }
  const { uidMappings, gidMappings } = (value ?? {}) as { uidMappings?: unknown; gidMappings?: unknown };
  const [uids, gids] = [listOf(uidMappings), listOf(gidMappings)];
  if (uids === undefined || gids === undefined) throw broken("this is no record of a user namespace's IDs");
  if (JSON.stringify(uids) !== JSON.stringify(gids)) throw broken("users and groups are not mapped alike");
  return { uids, gids };
}

// One range, from the namespace's root on: everything else was not written by an agent.
function listOf(value: unknown): IDMapping[] | undefined {
  if (!Array.isArray(value) || value.length !== 1) return undefined;
  const { hostId, containerId, length } = (value[0] ?? {}) as Record<string, unknown>;
  const isCount = (n: unknown): n is number => Number.isSafeInteger(n) && Number(n) > 0 && Number(n) <= idsMax;
  if (!isCount(hostId) || !isCount(length) || containerId !== 0 || hostId + length > idsMax) return undefined;
  return [{ hostID: hostId, containerID: 0, length }];
}

/**
 * The IDs that are set aside for pods: what /etc/subuid and /etc/subgid give the user "kubelet", by way of `getsubids`.
 * Without such a user or command: all but the first `idsPerPod`, which are the node's own.
 * Rejects with Invalid for a delegation that pods cannot be served from.
 */
export async function delegatedIDs(
  idsPerPod: number,
  passwdFile = "/etc/passwd",
  command = "getsubids",
): Promise<IDRange> {
  const all = { first: idsPerPod, count: idsMax - idsPerPod };
  const passwd = (await readFile(passwdFile, "utf8").catch(ignoreErrno("ENOENT"))) ?? "";
  if (!passwd.split("\n").some((line) => line.startsWith("kubelet:"))) return all;
  const ask = async (args: readonly string[]) => await exec(command, args, { timeoutMs: getsubidsTimeoutMs });
  const [users, groups] = await Promise.all([ask(["kubelet"]), ask(["-g", "kubelet"])]);
  if (users.failure === "spawn") return all;
  for (const { failure, message } of [users, groups]) {
    if (failure !== undefined) throw new AgentError("Invalid", `IDs for user namespaces not known: ${message}`);
  }
  return parseSubIDs(users.stdout, groups.stdout, idsPerPod);
}

/** What `getsubids` says of users and of groups, as one range. Pure. Throws with code Invalid as {@link delegatedIDs}. */
export function parseSubIDs(users: string, groups: string, idsPerPod: number): IDRange {
  const invalid = (why: string) => new AgentError("Invalid", `subordinate IDs of user kubelet: ${why}`);
  if (users !== groups) throw invalid("users and groups differ, make /etc/subuid and /etc/subgid alike");
  const lines = users.split("\n").filter((line) => line.trim() !== "");
  const [, firstText, countText] = /^\d+: kubelet (\d+) (\d+)$/.exec(lines[0]?.trim() ?? "") ?? [];
  if (lines.length !== 1 || firstText === undefined) throw invalid("exactly one range is needed");
  const [first, count] = [Number(firstText), Number(countText)];
  if (
    first < idsPerPod ||
    first % idsPerPod !== 0 ||
    count % idsPerPod !== 0 ||
    count === 0 ||
    first + count > idsMax
  ) {
    throw invalid(`${first}+${count} must begin at, and be as long as, a multiple of ${idsPerPod} below 2^32`);
  }
  return { first, count };
}
