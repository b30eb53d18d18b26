/** A point in time as logs tell it: whole seconds since 1970 and nanoseconds of the second. */
export interface Instant {
  readonly seconds: number;
  readonly nanos: number;
}

const dash = 0x2d;
const colon = 0x3a;
const dot = 0x2e;
const plus = 0x2b;
const zero = 0x30;
const letterT = 0x54;
const letterZ = 0x5a;

const monthDays = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

// `2006-01-02T15:04:05`: what comes before fraction and zone.
const wallLength = 19;
const fractionDigitsMax = 9;

/** Longest that {@link LogTime.write} writes: wall clock, fraction, zone. */
export const logTimeLengthMax = wallLength + 1 + fractionDigitsMax + 6;

/**
 * Reads RFC 3339 times of log records without making an object or a string of each: there may be millions a second.
 * Holds the time that was read last.
 */
export class LogTime {
  seconds = 0;
  nanos = 0;
  #buffer: Uint8Array = new Uint8Array(0);
  #at = 0;
  #fractionDigits = 0;
  /** Index of the zone; -1: UTC, however it was written. */
  #zoneAt = -1;

  /**
   * Reads a time that begins at `at`: 0 to 9 digits of fraction, any zone.
   * @returns the index behind it; -1 if there is none before `end`
   */
  parse(buf: Uint8Array, at: number, end: number): number {
    if (end - at <= wallLength || buf[at + 4] !== dash || buf[at + 7] !== dash) return -1;
    if (buf[at + 10] !== letterT || buf[at + 13] !== colon || buf[at + 16] !== colon) return -1;
    const century = twoDigits(buf, at);
    const yearOfCentury = twoDigits(buf, at + 2);
    const month = twoDigits(buf, at + 5);
    const day = twoDigits(buf, at + 8);
    const hour = twoDigits(buf, at + 11);
    const minute = twoDigits(buf, at + 14);
    const second = twoDigits(buf, at + 17);
    if ((century | yearOfCentury | month | day | hour | minute | second) < 0) return -1; // one of them is no number
    const year = century * 100 + yearOfCentury;
    if (hour > 23 || minute > 59 || second > 59 || !isDay(year, month, day)) return -1;

    let i = at + wallLength;
    let nanos = 0;
    let digits = 0;
    if (buf[i] === dot) {
      i += 1;
      while (i < end && isDigit(buf[i])) {
        nanos = nanos * 10 + (buf[i] as number) - zero;
        digits += 1;
        i += 1;
        if (digits > fractionDigitsMax) return -1;
      }
      if (digits === 0) return -1;
      for (let missing = digits; missing < fractionDigitsMax; missing += 1) nanos *= 10;
    }

    let offsetMinutes = 0;
    let zoneAt = -1;
    if (i >= end) return -1;
    if (buf[i] === letterZ) {
      i += 1;
    } else {
      if ((buf[i] !== plus && buf[i] !== dash) || i + 6 > end || buf[i + 3] !== colon) return -1;
      const hours = twoDigits(buf, i + 1);
      const minutes = twoDigits(buf, i + 4);
      if ((hours | minutes) < 0 || hours > 24 || minutes > 59) return -1;
      offsetMinutes = (buf[i] === plus ? 1 : -1) * (hours * 60 + minutes);
      if (offsetMinutes !== 0) zoneAt = i;
      i += 6;
    }

    this.seconds = daysFromCivil(year, month, day) * 86_400 + (hour * 60 + minute - offsetMinutes) * 60 + second;
    this.nanos = nanos;
    this.#buffer = buf;
    this.#at = at;
    this.#fractionDigits = digits;
    this.#zoneAt = zoneAt;
    return i;
  }

  isBefore(other: Instant): boolean {
    return this.seconds === other.seconds ? this.nanos < other.nanos : this.seconds < other.seconds;
  }

  /**
   * Writes the time with nine digits of fraction, in the zone it was in, `Z` for UTC. The buffer it was read from must
   * still hold it, and `target` must have room for {@link logTimeLengthMax}.
   * @returns the index behind it
   */
  write(target: Uint8Array, at: number): number {
    const source = this.#buffer;
    const from = this.#at;
    let o = at;
    for (let i = 0; i < wallLength; i += 1) target[o++] = source[from + i] as number;
    target[o++] = dot;
    const fractionAt = from + wallLength + 1;
    for (let i = 0; i < fractionDigitsMax; i += 1) {
      target[o++] = i < this.#fractionDigits ? (source[fractionAt + i] as number) : zero;
    }
    if (this.#zoneAt < 0) {
      target[o++] = letterZ;
    } else {
      for (let i = 0; i < 6; i += 1) target[o++] = source[this.#zoneAt + i] as number;
    }
    return o;
  }
}

/** An RFC 3339 time; undefined if `text` is none. */
export function parseTime(text: string): Instant | undefined {
  const time = new LogTime();
  const bytes = Buffer.from(text, "latin1");
  if (time.parse(bytes, 0, bytes.length) !== bytes.length) return undefined;
  return { seconds: time.seconds, nanos: time.nanos };
}

function isDigit(byte: number | undefined): boolean {
  return byte !== undefined && byte >= zero && byte <= zero + 9;
}

/** Negative if one of both is no digit. */
function twoDigits(buf: Uint8Array, at: number): number {
  const tens = (buf[at] as number) - zero;
  const ones = (buf[at + 1] as number) - zero;
  return tens >= 0 && tens <= 9 && ones >= 0 && ones <= 9 ? tens * 10 + ones : -1;
}

function isDay(year: number, month: number, day: number): boolean {
  if (month < 1 || month > 12 || day < 1) return false;
  const isLeap = year % 4 === 0 && (year % 100 !== 0 || year % 400 === 0);
  return day <= (monthDays[month - 1] as number) || (day === 29 && month === 2 && isLeap);
}

// Days since 1970-01-01 in the Gregorian calendar: years begin in March, so that the leap day is the last.
function daysFromCivil(year: number, month: number, day: number): number {
  const y = month <= 2 ? year - 1 : year;
  const era = Math.floor(y / 400);
  const yearOfEra = y - era * 400;
  const dayOfYear = Math.floor((153 * (month + (month > 2 ? -3 : 9)) + 2) / 5) + day - 1;
  return (
    era * 146_097 + yearOfEra * 365 + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100) + dayOfYear - 719_468
  );
}
