/** Which requests a fault is for. Absent fields match everything. */
export interface FaultMatch {
  /** HTTP method. */
  method?: string;
  /** API verb: get, list, watch, create, update, patch, delete. */
  verb?: string;
  /** `pods`, `pods/status`, `leases`, … */
  resource?: string;
  /** Against path and query. */
  path?: RegExp;
  user?: string;
}

export type FaultAction =
  /** Answer with an error Status. */
  | { kind: "respond"; code: 410 | 429 | 500 | 503 | 504 | 403 | 409; retryAfterSeconds?: number; message?: string }
  /** Do the work, but later. */
  | { kind: "delay"; ms: number }
  /** Break the exchange off before the work is done. */
  | { kind: "drop" }
  /** Do the work, then break the exchange off: the client can not know. */
  | { kind: "dropAnswer" }
  /** Never answer. */
  | { kind: "hang" }
  /** Send the body in pieces, and only a part of it with `cutAfterBytes`. */
  | { kind: "slowBody"; chunkBytes: number; intervalMs: number; cutAfterBytes?: number };

export interface FaultHandle {
  /** How often it struck. */
  readonly hits: number;
  remove(): void;
}

/** What a request looks like to the rules. */
export interface FaultSubject {
  method: string;
  verb: string;
  resource: string;
  url: string;
  user: string;
}

interface Rule {
  match: FaultMatch;
  action: FaultAction;
  remaining: number;
  hits: number;
}

/** What the server does about connections, watches and history when it is told to misbehave. */
export interface FaultHost {
  /** Resets every open connection; new ones work. */
  dropConnections(): void;
  /** On: new connections are accepted and never answered, open ones fall silent. Off: everything flows again. */
  setHalfOpen(isOn: boolean): void;
  cutWatches(match: FaultMatch, midLine: boolean): number;
  silenceWatches(match: FaultMatch, isSilent: boolean): void;
  compact(storage?: string): void;
}

/** Misbehaviour on demand. */
export class Faults {
  #rules: Rule[] = [];
  readonly #host: FaultHost;

  constructor(host: FaultHost) {
    this.#host = host;
  }

  /** Lets the next `times` matching requests (all, unless given) meet `action`. Rules are tried in order, the first counts. */
  inject(match: FaultMatch, action: FaultAction, times = Number.POSITIVE_INFINITY): FaultHandle {
    const rule: Rule = { match, action, remaining: times, hits: 0 };
    this.#rules.push(rule);
    return {
      get hits() {
        return rule.hits;
      },
      remove: () => {
        this.#rules = this.#rules.filter((r) => r !== rule);
      },
    };
  }

  /** The fault for a request, counted; undefined if it may pass. */
  next(subject: FaultSubject): FaultAction | undefined {
    const rule = this.#rules.find((r) => r.remaining > 0 && matchesFault(r.match, subject));
    if (rule === undefined) return undefined;
    rule.remaining -= 1;
    rule.hits += 1;
    return rule.action;
  }

  /** Removes all rules, ends half-open and silence. */
  clear(): void {
    this.#rules = [];
    this.#host.setHalfOpen(false);
    this.#host.silenceWatches({}, false);
  }

  dropConnections(): void {
    this.#host.dropConnections();
  }

  setHalfOpen(isOn: boolean): void {
    this.#host.setHalfOpen(isOn);
  }

  /** Ends matching watches by a reset stream, or in the middle of a JSON line. Returns how many. */
  cutWatches(match: FaultMatch = {}, { midLine = false } = {}): number {
    return this.#host.cutWatches(match, midLine);
  }

  /** Open and future matching watches deliver nothing, no bookmarks either, until called with `false`. */
  silenceWatches(match: FaultMatch = {}, isSilent = true): void {
    this.#host.silenceWatches(match, isSilent);
  }

  /** Forgets history: resuming a watch or a paged list from before now answers 410. */
  compact(storage?: string): void {
    this.#host.compact(storage);
  }
}

/** True if a request is one that `match` means. Pure. */
export function matchesFault(match: FaultMatch, subject: FaultSubject): boolean {
  return (
    (match.method === undefined || match.method === subject.method) &&
    (match.verb === undefined || match.verb === subject.verb) &&
    (match.resource === undefined || match.resource === subject.resource) &&
    (match.user === undefined || match.user === subject.user) &&
    (match.path === undefined || match.path.test(subject.url))
  );
}
