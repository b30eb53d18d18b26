import { mkdir, readFile, rename, rm, symlink } from "node:fs/promises";
import { join, resolve } from "node:path";
import { syncDirectory, writeFileAtomic } from "../../lib/atomic-file.ts";
import { errnoOf, ignoreErrno } from "../../lib/errno.ts";
import { messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { type CertificatePair, parsePair } from "./pair.ts";

export interface PemStoreOptions {
  /** --cert-dir. Made with the first pair. */
  dir: string;
  /** What file names begin with. */
  prefix: "kubelet-client" | "kubelet-server";
  /** A pair in two files of the configuration: used while the store has none of its own. */
  configured?: { cert: string; key: string };
  log: Logger;
}

/**
 * Certificates with their keys on disk, where the reference and its tools look for them:
 *
 *     PREFIX-2026-11-21-14-40-10.pem      one pair: certificates, then the key; 0600
 *     PREFIX-current.pem                  symbolic link to the pair in use
 *     PREFIX-updated.pem                  the next link, for the moment before it replaces the current one
 */
export class PemStore {
  /** Absolute path of the link to the pair in use. */
  readonly currentPath: string;
  readonly #options: PemStoreOptions;
  readonly #updatedPath: string;

  constructor(options: PemStoreOptions) {
    this.#options = options;
    this.currentPath = this.#path("current.pem");
    this.#updatedPath = this.#path("updated.pem");
  }

  /**
   * The newest pair that is usable, expired or not: the current one, else that of the configuration, else PREFIX.crt and
   * PREFIX.key. What cannot be used is logged and passed over.
   */
  async load(): Promise<CertificatePair | undefined> {
    await this.recover();
    const { dir, prefix, configured } = this.#options;
    const places = [
      { cert: this.currentPath, key: this.currentPath },
      ...(configured === undefined ? [] : [configured]),
      { cert: join(dir, `${prefix}.crt`), key: join(dir, `${prefix}.key`) },
    ];
    for (const place of places) {
      const pair = await this.#read(place);
      if (pair !== undefined) return pair;
    }
    return undefined;
  }

  /** Saves a pair and makes it the current one. Rejects with the system's error; the pair before is then still current. */
  async save(pair: CertificatePair, now: Date): Promise<void> {
    for (const step of this.steps(pair, now)) await step();
  }

  /** What `save` does, one after the other. After a kill between any two of them, `load` finds the old pair or the new. */
  steps(pair: CertificatePair, now: Date): readonly (() => Promise<unknown>)[] {
    const path = this.#path(`${timestamp(now)}.pem`);
    return [
      () => mkdir(this.#options.dir, { recursive: true, mode: 0o755 }),
      () => writeFileAtomic(path, Buffer.concat([pair.cert, pair.key]), 0o600),
      () => rm(this.#updatedPath, { force: true }),
      () => symlink(path, this.#updatedPath),
      () => rename(this.#updatedPath, this.currentPath),
      () => syncDirectory(this.#options.dir),
    ];
  }

  /** Ends what an agent began that was killed while it saved its first pair. */
  async recover(): Promise<void> {
    const { log } = this.#options;
    try {
      await readFile(this.currentPath);
    } catch (err) {
      if (errnoOf(err) !== "ENOENT") return;
      const isLink = await readFile(this.#updatedPath).then(
        () => true,
        () => false,
      );
      if (!isLink) return;
      await rename(this.#updatedPath, this.currentPath).catch((renameErr: unknown) =>
        log.warn({ path: this.currentPath, err: messageOf(renameErr) }, "cannot finish saving a certificate"),
      );
    }
  }

  async #read({ cert, key }: { cert: string; key: string }): Promise<CertificatePair | undefined> {
    try {
      const [certText, keyText] = await Promise.all([
        readFile(cert, "utf8").catch(ignoreErrno("ENOENT", "ENOTDIR")),
        readFile(key, "utf8").catch(ignoreErrno("ENOENT", "ENOTDIR")),
      ]);
      return certText === undefined || keyText === undefined ? undefined : parsePair(certText, keyText);
    } catch (err) {
      this.#options.log.warn({ path: cert, err: messageOf(err) }, "a stored certificate is unusable, passing it over");
      return undefined;
    }
  }

  #path(suffix: string): string {
    return join(resolve(this.#options.dir), `${this.#options.prefix}-${suffix}`);
  }
}

/** Local time, as in the names that the reference makes: `2026-11-21-14-40-10`. */
function timestamp(now: Date): string {
  const two = (n: number) => String(n).padStart(2, "0");
  const date = [String(now.getFullYear()), two(now.getMonth() + 1), two(now.getDate())];
  return [...date, two(now.getHours()), two(now.getMinutes()), two(now.getSeconds())].join("-");
}
