import { AgentError, messageOf } from "../../lib/errors.ts";
import type { Nft, TableContent } from "./exec.ts";

/** One listing of the table. */
interface Listing {
  /** Chains that were written since it began: what it says of them may be old. */
  readonly written: Set<string>;
  result?: { readonly table: TableContent | undefined } | { readonly err: unknown };
}

/**
 * Asks the kernel for the handles that it gave to rules. However few chains are asked for, nft reads all elements of the table for it: most
 * of a second at ten thousand services. So nobody waits for the listing; rules may change meanwhile.
 */
export class HandleListing {
  readonly #nft: Pick<Nft, "read">;
  #listing: Listing | undefined;
  #reading: Promise<void> | undefined;

  constructor(nft: Pick<Nft, "read">) {
    this.#nft = nft;
  }

  /** These chains are being written: handles of before are wrong. */
  noteWritten(chains: Iterable<string>): void {
    for (const chain of chains) this.#listing?.written.add(chain);
  }

  /** Every chain is being written. */
  forget(): void {
    this.#listing = undefined;
  }

  /** Resolves when no listing is under way. Never rejects. */
  async idle(): Promise<void> {
    await this.#reading;
  }

  /**
   * What was found since it was asked for first, by chain: none for a chain without rules, undefined for one that was written meanwhile.
   * Undefined: not yet. Throws if the table could not be listed; asked again, it begins anew.
   */
  take(
    signal: AbortSignal,
  ): { readonly handles: (chain: string) => readonly number[] | undefined } | "absent" | undefined {
    const listing = this.#listing;
    if (listing === undefined) {
      if (this.#reading === undefined) this.#begin(signal);
      return undefined;
    }
    const { result, written } = listing;
    if (result === undefined) return undefined;
    this.#listing = undefined;
    if ("err" in result) throw new AgentError("Unavailable", messageOf(result.err), { cause: result.err });
    const { table } = result;
    if (table === undefined) return "absent";
    return { handles: (chain) => (written.has(chain) ? undefined : (table.handles.get(chain) ?? [])) };
  }

  #begin(signal: AbortSignal): void {
    const listing: Listing = { written: new Set() };
    this.#listing = listing;
    this.#reading = this.#read(listing, signal);
  }

  async #read(listing: Listing, signal: AbortSignal): Promise<void> {
    try {
      listing.result = { table: await this.#nft.read(signal) };
    } catch (err) {
      listing.result = { err };
    } finally {
      this.#reading = undefined;
    }
  }
}
