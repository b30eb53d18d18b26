import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { cancelable } from "../lib/abortable.ts";
import { writeFileAtomic } from "../lib/atomic-file.ts";
import { messageOf } from "../lib/errors.ts";
import { isObject } from "../lib/json.ts";
import type { Logger } from "../lib/log.ts";
import type { MetricsRegistry } from "../lib/metrics.ts";
import { rfc3339 } from "../lib/rfc3339.ts";
import { type Coordinates, type ImageCredential, stripSource } from "./images-auth.ts";
import { parseImageName } from "./images-name.ts";
import { createPullRecordMetrics } from "./metrics.ts";
import type { ImageInfo, ImageService } from "./port.ts";

/** `imagePullCredentialsVerificationPolicy` of the configuration. */
export type VerificationPolicy =
  | { kind: "NeverVerify" | "NeverVerifyPreloadedImages" | "AlwaysVerify" }
  /** Entries are repositories, or `prefix/*`. */
  | { kind: "NeverVerifyAllowlistedImages"; allowlist: readonly string[] };

interface SecretRecord extends Coordinates {
  /** sha256 of the credential, hex. */
  credentialHash: string;
}

interface RepositoryCredentials {
  nodePodsAccessible?: boolean;
  kubernetesSecrets?: SecretRecord[];
  kubernetesServiceAccounts?: Coordinates[];
}

/** Who may use an image that the agent pulled: the file format of kubelet's records. */
export interface ImagePulledRecord {
  lastUpdatedTime: string;
  imageRef: string;
  /** By repository, without tag and digest. */
  credentialMapping: Record<string, RepositoryCredentials>;
}

const apiVersion = "kubelet.config.k8s.io/v1beta1";

/**
 * Decides whether a pod must prove, by pulling, that it may use an image that is present. Pure.
 *
 * @param wasPulled the agent pulled it, or began to
 * @param record    what is known of the pulls that succeeded
 */
export function mustProveAccess(
  policy: VerificationPolicy,
  repository: string,
  wasPulled: boolean,
  record: ImagePulledRecord | undefined,
  credentials: readonly ImageCredential[],
): boolean {
  return !isAllowedByPolicy(policy, repository, wasPulled) && !isAllowedByRecord(repository, record, credentials);
}

function isAllowedByPolicy(policy: VerificationPolicy, repository: string, wasPulled: boolean): boolean {
  switch (policy.kind) {
    case "NeverVerify":
      return true;
    case "NeverVerifyPreloadedImages":
      return !wasPulled;
    case "NeverVerifyAllowlistedImages":
      return isAllowlisted(repository, policy.allowlist);
    case "AlwaysVerify":
      return false;
  }
}

function isAllowedByRecord(
  repository: string,
  record: ImagePulledRecord | undefined,
  credentials: readonly ImageCredential[],
): boolean {
  const known = record?.credentialMapping[repository];
  if (known === undefined) return false;
  if (known.nodePodsAccessible === true) return true;
  return credentials.some((credential) => {
    const { secret, serviceAccount } = credential;
    if (serviceAccount !== undefined) {
      return (known.kubernetesServiceAccounts ?? []).some((account) => isSame(account, serviceAccount));
    }
    const hash = credentialHash(credential);
    return (known.kubernetesSecrets ?? []).some(
      (record) => (record.credentialHash !== "" && record.credentialHash === hash) || isSame(record, secret),
    );
  });
}

function isAllowlisted(repository: string, allowlist: readonly string[]): boolean {
  return allowlist.some((entry) =>
    entry.endsWith("/*") ? repository.startsWith(entry.slice(0, -1)) : repository === entry,
  );
}

function isSame(record: Coordinates, other: Coordinates | undefined): boolean {
  return (
    other !== undefined &&
    record.uid === other.uid &&
    record.namespace === other.namespace &&
    record.name === other.name
  );
}

// As the reference writes a credential: without empty fields, and with these characters escaped.
function credentialHash(credential: ImageCredential): string {
  const { username, password, auth, serverAddress, identityToken, registryToken } = stripSource(credential);
  const fields = {
    username,
    password,
    auth,
    serveraddress: serverAddress,
    identitytoken: identityToken,
    registrytoken: registryToken,
  };
  const filled = Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined && value !== ""));
  const text = JSON.stringify(filled).replace(
    /[<>&\u2028\u2029]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
  return createHash("sha256").update(text).digest("hex");
}

/**
 * The record after a pull that succeeded. Pure.
 *
 * @param credential what it succeeded with; without one, or with one of the node's own, every pod may use the image
 */
export function addPull(
  record: ImagePulledRecord | undefined,
  pull: { imageRef: string; repository: string; credential: ImageCredential | undefined; nowMs: number },
): ImagePulledRecord {
  const { imageRef, repository, credential, nowMs } = pull;
  return {
    lastUpdatedTime: rfc3339(nowMs),
    imageRef,
    credentialMapping: {
      ...record?.credentialMapping,
      [repository]: withCredential(record?.credentialMapping[repository] ?? {}, credential),
    },
  };
}

function withCredential(known: RepositoryCredentials, credential: ImageCredential | undefined): RepositoryCredentials {
  const { secret, serviceAccount } = credential ?? {};
  if (credential === undefined || (secret === undefined && serviceAccount === undefined)) {
    return { nodePodsAccessible: true };
  }
  if (known.nodePodsAccessible === true) return known;
  if (serviceAccount !== undefined) {
    const others = (known.kubernetesServiceAccounts ?? []).filter((other) => !isSame(other, serviceAccount));
    return { ...known, kubernetesServiceAccounts: [...others, serviceAccount] };
  }
  if (secret === undefined) return known;
  const others = (known.kubernetesSecrets ?? []).filter((other) => !isSame(other, secret));
  return { ...known, kubernetesSecrets: [...others, { ...secret, credentialHash: credentialHash(credential) }] };
}

/** Which images the agent pulled, and with what; survives restarts. */
export interface PullRecords {
  /**
   * True if the pod has to pull the present image to show that it may use it.
   *
   * @param credentials asks for all that the pod has; called only if they decide
   */
  mustPull(image: string, imageRef: string, credentials: () => Promise<readonly ImageCredential[]>): Promise<boolean>;
  /** Runs a pull between its intent and its record: a crash in between leaves the intent. */
  recordPull(image: string, pull: () => Promise<PullOutcome>): Promise<PullOutcome>;
  /** Turns the intents of pulls that a crash cut off into records that nobody's credentials satisfy. Call at start. */
  recover(images: ImageService): Promise<void>;
  /**
   * Drops records of images that the runtime no longer has. Call after image garbage collection.
   *
   * @param listImages asked for what the runtime has; once more before anything goes
   * @param signal     its abort rejects at once with Canceled, whatever the runtime does
   */
  prune(listImages: () => Promise<readonly ImageInfo[]>, signal: AbortSignal): Promise<void>;
}

export interface PullOutcome {
  imageRef: string;
  /** The credential that worked; undefined: none was needed. */
  credential: ImageCredential | undefined;
}

export interface PullRecordsOptions {
  /** `ROOT/image_manager`. */
  dir: string;
  policy: VerificationPolicy;
  now: () => number;
  log: Logger;
  registry?: MetricsRegistry;
}

/** Makes the directories (0700) and serves the records in them. */
export async function openPullRecords(options: PullRecordsOptions): Promise<PullRecords> {
  const { dir, policy, now, log, registry } = options;
  const intents = join(dir, "pulling");
  const pulled = join(dir, "pulled");
  const metrics = registry === undefined ? undefined : createPullRecordMetrics(registry, { intents, pulled });
  for (const path of [dir, intents, pulled]) await mkdir(path, { recursive: true, mode: 0o700 });
  const pathOf = (folder: string, key: string) =>
    join(folder, `sha256-${createHash("sha256").update(key).digest("hex")}`);

  // Pulls of one image that run now: the last one removes the intent.
  const running = new Map<string, number>();
  // Records are read, changed and written by one at a time.
  let turn: Promise<unknown> = Promise.resolve();
  const inTurn = async <T>(work: () => Promise<T>): Promise<T> => {
    const result = turn.then(work);
    turn = result.catch(() => undefined);
    return await result;
  };

  const readRecord = async (imageRef: string): Promise<ImagePulledRecord | undefined> => {
    const text = await readIfThere(pathOf(pulled, imageRef));
    if (text === undefined) return undefined;
    const record = parseRecord(text);
    if (record === undefined) log.warn({ imageRef }, "image pull record is damaged, its image must be pulled again");
    // Damaged is not absent: the agent did pull this image, only for whom is lost.
    return record ?? { lastUpdatedTime: "", imageRef, credentialMapping: {} };
  };
  const writeRecord = async (record: ImagePulledRecord) => {
    const content = JSON.stringify({ kind: "ImagePulledRecord", apiVersion, ...record });
    await writeFileAtomic(pathOf(pulled, record.imageRef), content);
  };
  const isIntended = async (image: string) => (await readIfThere(pathOf(intents, image))) !== undefined;
  const repositoryOf = (image: string): string => {
    const name = parseImageName(image);
    return typeof name === "string" ? image : name.repository;
  };

  return {
    mustPull: async (image, imageRef, credentials) => {
      try {
        const repository = repositoryOf(image);
        const { record, wasPulled } = await inTurn(async () => {
          const found = await readRecord(imageRef);
          return { record: found, wasPulled: found !== undefined || (await isIntended(image)) };
        });
        const isUndecided = mustProveAccess(policy, repository, wasPulled, record, []);
        const held = isUndecided && record?.credentialMapping[repository] !== undefined ? await credentials() : [];
        const mustPull = isUndecided && mustProveAccess(policy, repository, wasPulled, record, held);
        const byPolicy = isAllowedByPolicy(policy, repository, wasPulled);
        const why = byPolicy ? "credentialPolicyAllowed" : "credentialRecordFound";
        metrics?.checked(mustPull ? "mustAuthenticate" : why);
        return mustPull;
      } catch (err) {
        metrics?.checked("error");
        throw err;
      }
    },

    recordPull: async (image, pull) => {
      running.set(image, (running.get(image) ?? 0) + 1);
      const intent = pathOf(intents, image);
      let isUnrecorded = false;
      try {
        await writeFileAtomic(intent, JSON.stringify({ kind: "ImagePullIntent", apiVersion, image }));
        const outcome = await pull();
        await inTurn(async () => {
          const record = await readRecord(outcome.imageRef);
          await writeRecord(addPull(record, { ...outcome, repository: repositoryOf(image), nowMs: now() }));
        }).catch((err: unknown) => {
          // Without either, the image would count as one that was here before, and be anyone's.
          isUnrecorded = true;
          log.warn({ image, err: messageOf(err) }, "image pull not recorded, others have to pull the image again");
        });
        return outcome;
      } finally {
        const others = (running.get(image) ?? 1) - 1;
        if (others > 0) running.set(image, others);
        else {
          running.delete(image);
          if (!isUnrecorded) await rm(intent, { force: true });
        }
      }
    },

    recover: async (images) => {
      for (const name of await readdir(intents)) {
        const path = join(intents, name);
        try {
          const image = parseIntent((await readIfThere(path)) ?? "");
          const present = image === undefined ? undefined : await images.imageStatus(image);
          if (image !== undefined && present !== undefined) {
            await inTurn(async () => {
              const record = await readRecord(present.id);
              const credentialMapping = { [repositoryOf(image)]: {}, ...record?.credentialMapping };
              await writeRecord({ lastUpdatedTime: rfc3339(now()), imageRef: present.id, credentialMapping });
            });
          }
          await rm(path, { force: true });
        } catch (err) {
          // The intent stays, and says as much as the record would.
          log.warn({ path, err: messageOf(err) }, "a pull that was cut off is looked at again at the next start");
        }
      }
    },

    prune: async (listImages, signal) => {
      const vanished = async () => {
        const images = await cancelable(listImages(), signal);
        const refs = images.flatMap(({ id, repoTags, repoDigests }) => [id, ...repoTags, ...repoDigests]);
        const kept = new Set(refs.map((ref) => pathOf(pulled, ref)));
        const paths = (await readdir(pulled)).map((name) => join(pulled, name));
        return paths.filter((path) => !kept.has(path));
      };
      if ((await vanished()).length === 0) return;
      // An image may have come in between. In its turn, no pull writes a record of one that came after this list, and what is
      // half written is of a writer that was killed.
      await inTurn(async () => {
        for (const path of await vanished()) await rm(path, { force: true });
      });
    },
  };
}

async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (err) {
    if (err instanceof Error && "code" in err && err.code === "ENOENT") return undefined;
    throw err;
  }
}

function parseIntent(text: string): string | undefined {
  const value = parseObject(text);
  return typeof value?.image === "string" ? value.image : undefined;
}

function parseRecord(text: string): ImagePulledRecord | undefined {
  const value = parseObject(text);
  if (value === undefined || typeof value.imageRef !== "string") return undefined;
  const mapping: unknown = value.credentialMapping ?? {};
  if (!isObject(mapping) || !Object.values(mapping).every(isRepositoryCredentials)) return undefined;
  const lastUpdatedTime = typeof value.lastUpdatedTime === "string" ? value.lastUpdatedTime : "";
  const credentialMapping = mapping as ImagePulledRecord["credentialMapping"]; // checked entry by entry above
  return { lastUpdatedTime, imageRef: value.imageRef, credentialMapping };
}

function isRepositoryCredentials(value: unknown): boolean {
  if (!isObject(value)) return false;
  const { kubernetesSecrets: secrets = [], kubernetesServiceAccounts: accounts = [] } = value;
  const coordinates = ["uid", "namespace", "name"];
  const isList = (list: unknown, fields: readonly string[]) =>
    Array.isArray(list) &&
    list.every((item: unknown) => isObject(item) && fields.every((field) => typeof item[field] === "string"));
  return isList(secrets, [...coordinates, "credentialHash"]) && isList(accounts, coordinates);
}

function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}
